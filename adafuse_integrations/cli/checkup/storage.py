"""Folders on disk: the results that adafuse keeps, and the cache of models."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adafuse_core import disk_cache

_PATIENCE_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of results on disk."""

    name: str
    entries: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What is on disk.

    Args:
        results_folder: The folder of results that adafuse keeps between starts. It may not exist yet.
        results: The kinds of results in it.
        writable: Whether results can be written.
        models_folder: Where downloaded models are kept.
        free_bytes: Free space of the disk with the models.
        offline: Whether downloads are switched off.
        token: Whether a token for gated models is set.
    """

    results_folder: str
    results: tuple[Kind, ...]
    writable: bool
    models_folder: str
    free_bytes: int
    offline: bool
    token: bool


def storage() -> Storage:
    """Look at the folders."""
    from huggingface_hub import constants, get_token

    models = Path(constants.HF_HUB_CACHE)
    return Storage(
        results_folder=str(disk_cache.root()),
        results=_kinds(),
        writable=_is_writable(disk_cache.root()),
        models_folder=str(models),
        free_bytes=shutil.disk_usage(_existing(models)).free,
        offline=bool(constants.HF_HUB_OFFLINE),
        token=get_token() is not None,
    )


def download_problem() -> str | None:
    """Why models can't be downloaded; None if the server answers, also if it asks for a token."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "downloads are switched off (HF_HUB_OFFLINE)"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:  # of the HTTP library, of proxies, of the system
        return f"{constants.ENDPOINT} can't be reached ({error or type(error).__name__})"
    return None


def _kinds() -> tuple[Kind, ...]:
    try:
        sizes = disk_cache.sizes()
        return tuple(Kind(name=name, entries=_entries(name), size_bytes=size) for name, size in sizes.items())
    except OSError:  # the folder may not be read
        return ()


def _entries(kind: str) -> int:
    return sum(path.suffix not in (".lock", ".part") for path in (disk_cache.root() / kind).iterdir())


def _is_writable(folder: Path) -> bool:
    """Whether a file can be created in a folder, or in the folder in which it would be created."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if os.access(each, os.F_OK))
