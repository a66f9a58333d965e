"""Two small trained language models that ship with the package, for tests, demos and development without a download.

`path("aspen")` and `path("birch")` are Hugging Face model folders with different architectures and tokenizers; see
`MODEL_CARD.md`. Importing this package doesn't import torch.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("aspen", "birch")


def path(name: str) -> Path:
    """The folder of a small model, ready for `from_pretrained`.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"no small model has the name {name!r}; choose one of {', '.join(NAMES)}")
    return Path(__file__).parent / name
