"""Reads single values from the header of a GGUF file, without loading the whole file or a GGUF package."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def header_value(path: Path, ending: str) -> Any:
    """The first value whose key has this ending, such as `.context_length`; None if not found or not a GGUF file.

    Values of the architecture come before the vocabulary, so only the start of the file is read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
        _, _, count = _unpack(file, "IQQ")  # version, tensors, values
        for _ in range(count):
            key, value = _string(file).decode(), _value(file, *_unpack(file, "I"))
            if key.endswith(ending):
                return value
    return None


def _value(file: IO[bytes], kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        kind, length = _unpack(file, "IQ")
        return [_value(file, kind) for _ in range(length)]
    return _unpack(file, _NUMBERS[kind])[0]


def _string(file: IO[bytes]) -> bytes:
    return file.read(*_unpack(file, "Q"))


def _unpack(file: IO[bytes], form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))
