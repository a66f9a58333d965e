"""Two small trained language models, for tests, demos and development without a download.

`path("aspen")` and `path("birch")` are Hugging Face model folders with different architectures and tokenizers; see
`MODEL_CARD.md`. They are here in a clone; the wheel leaves them out, and the package `adafuse-small-models` has them.
Importing this package doesn't import torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NAMES = ("aspen", "birch")
INSTALL = 'pip install "adafuse[small-models]"'

_PACKAGE = "adafuse_small_models"


def path(name: str) -> Path:
    """The folder of a small model, ready for `from_pretrained`.

    Args:
        name: One of `NAMES`.

    Raises:
        ValueError: The name is unknown.
        FileNotFoundError: The package with the models is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"no small model has the name {name!r}; choose one of {', '.join(NAMES)}")
    here = Path(__file__).parent / name
    if here.is_dir():
        return here
    package = find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise FileNotFoundError(f"the package adafuse-small-models is not installed: {INSTALL}")
    return Path(package.origin).parent / name
