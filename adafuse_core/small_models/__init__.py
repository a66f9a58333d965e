"""Two small real language models that ship with the package: their folders and their names.

`path("aspen")` and `path("birch")` are Hugging Face model folders with different architectures and tokenizers. They
serve tests, demos and development without a download; see `MODEL_CARD.md`. Importing this package loads no torch.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("aspen", "birch")


def path(name: str) -> Path:
    """The folder of a small model, ready for `from_pretrained`.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: If there is no small model of that name.
    """
    if name not in NAMES:
        raise ValueError(f"no small model is called {name!r}; choose one of {', '.join(NAMES)}")
    return Path(__file__).parent / name
