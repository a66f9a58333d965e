"""Results kept on disk between processes, such as converted weights and verdicts of self-tests.

All of it can be recomputed: an entry that is missing, damaged or from another version costs time, nothing else. The
folder lies beside the caches of huggingface_hub and moves with its `HF_HOME`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_CONTENTS = "contents.json"  # written last into a folder
_HEAD = 1 << 20  # a file is compared by its size and its first bytes: hashing gigabytes would take as long as loading


def root() -> Path:
    """The folder of all entries, which may not exist."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "adafuse"


def digest(facts: Mapping[str, Any]) -> str:
    """A short name for what an entry depends on: equal for equal facts, which must be JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def read_json(kind: str, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry for these facts; None if there is none."""
    try:
        entry = json.loads(_file(kind, facts).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found: dict[str, Any] | None = entry["value"] if isinstance(entry, dict) and entry.get("facts") == facts else None
    return found


def write_json(kind: str, facts: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    """Write an entry. If the folder is not writable, the log says so."""
    path = _file(kind, facts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump({"facts": facts, "value": value}, file, indent=1)
        Path(file.name).replace(path)  # other processes see the old entry or the new one
    except OSError as error:
        logger.info("can't keep a result in %s: %s", path.parent, error)


def folder(kind: str, facts: Mapping[str, Any], read: Callable[[], Callable[[Path], object]], size: int) -> Path | None:
    """The folder for these facts, which is written if there is none or a damaged one.

    Several processes and threads may ask for the same folder: one of them writes it, the others wait.

    Args:
        kind: Name of a group of entries.
        facts: What the content depends on.
        read: Makes the content and returns a function that writes it into an empty folder.
        size: About as many bytes will be written.

    Returns:
        None if the folder can't be written; the log says why. Errors of `read` are raised.
    """
    path = root() / kind / digest(facts)
    if _is_complete(path):
        return path
    if (lock := _lock(path)) is None:
        return None
    with lock:
        if _is_complete(path):  # written by another process meanwhile
            return path
        if (free := shutil.disk_usage(path.parent).free) < size:
            _can_not_keep(path, f"it needs about {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
            return None
        write = read()
        try:
            _publish(path, facts, write)
        except Exception as error:  # whatever a library raises, the content is usable without the folder
            _can_not_keep(path, error)
            return None
    return path


def versions(*packages: str) -> dict[str, str | None]:
    """The installed versions of these packages and of this one; None for a package that is not installed."""
    found: dict[str, str | None] = {}
    for package in ("adafuse", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def sizes() -> dict[str, int]:
    """Bytes on disk of each kind of entries."""
    kinds = sorted(path for path in root().iterdir() if path.is_dir()) if root().is_dir() else []
    return {path.name: _size(path) for path in kinds}


def clear(kind: str | None = None) -> int:
    """Delete all entries, or those of one kind; returns the number of freed bytes."""
    if kind is not None and kind not in sizes():
        return 0
    folder = root() if kind is None else root() / kind
    size = _size(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size - _size(folder)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _lock(path: Path) -> AbstractContextManager[Any] | None:
    """The lock of a folder, held until its context ends; None if the file system does not allow it."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process or thread that writes %s", path)
            return lock.acquire()
    except (OSError, NotImplementedError) as error:
        _can_not_keep(path, error)
        return None


def _publish(path: Path, facts: Mapping[str, Any], write: Callable[[Path], object]) -> None:
    """Write a folder under another name and rename it, so that no process sees a part of it."""
    for left in (path, *path.parent.glob(f"{path.name}.*.part")):  # damaged, or of a process that was killed
        if left.exists():
            shutil.rmtree(left)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir()
    try:
        write(part)
        files = {file.relative_to(part).as_posix(): _fingerprint(file) for file in part.rglob("*") if file.is_file()}
        (part / _CONTENTS).write_text(json.dumps({"facts": facts, "files": files}, indent=1), encoding="utf-8")
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_complete(path: Path) -> bool:
    """Whether a folder has the files that were written into it."""
    try:
        files = json.loads((path / _CONTENTS).read_text(encoding="utf-8"))["files"]
        return all(_fingerprint(path / name) == found for name, found in files.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _fingerprint(file: Path) -> list[Any]:
    with file.open("rb") as opened:
        return [file.stat().st_size, hashlib.sha256(opened.read(_HEAD)).hexdigest()]


def _can_not_keep(path: Path, reason: object) -> None:
    logger.warning("can't keep a result in %s, so it will be computed again at the next start: %s", path.parent, reason)


def _file(kind: str, facts: Mapping[str, Any]) -> Path:
    return root() / kind / f"{digest(facts)}.json"
