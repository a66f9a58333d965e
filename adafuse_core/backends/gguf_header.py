"""Reads values from the header of a GGUF file, without loading the whole file or a GGUF package."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import IO, Any

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def header_value(path: Path, ending: str) -> Any:
    """The first value whose key has this ending, such as `.context_length`; None if not found or not a GGUF file.

    Values of the architecture come before the vocabulary, so only the start of the file is read.
    """
    with path.open("rb") as file:
        for _ in range(_counts(file)[1]):
            key, value = _entry(file)
            if key.endswith(ending):
                return value
    return None


def elements_by_type(path: Path) -> dict[int, int]:
    """The number of elements that the file stores in each type of ggml, quantized or not; empty if not a GGUF file."""
    found: dict[int, int] = {}
    with path.open("rb") as file:
        tensors, values = _counts(file)
        for _ in range(values):
            _entry(file)
        for _ in range(tensors):
            _string(file)  # its name
            shape = _unpack(file, "Q" * _unpack(file, "I")[0])
            kind, _ = _unpack(file, "IQ")  # type, offset
            found[kind] = found.get(kind, 0) + prod(shape)
    return found


def _counts(file: IO[bytes]) -> tuple[int, int]:
    """The numbers of tensors and of values; zeros if the file is no GGUF file."""
    if file.read(4) != b"GGUF":
        return 0, 0
    _, tensors, values = _unpack(file, "IQQ")  # version, ...
    return tensors, values


def _entry(file: IO[bytes]) -> tuple[str, Any]:
    return _string(file).decode(), _value(file, *_unpack(file, "I"))


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _unpack(file, _NUMBERS[kind])[0]
    kind, length = _unpack(file, "IQ")
    if kind in _NUMBERS:
        return list(_unpack(file, f"{length}{_NUMBERS[kind]}"))
    return [_value(file, kind) for _ in range(length)]


def _string(file: IO[bytes]) -> bytes:
    return file.read(*_unpack(file, "Q"))


def _unpack(file: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
