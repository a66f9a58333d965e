"""Writes answers to a file or to standard output, in the order of the input, and continues a file that exists."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from adafuse_core.errors import ConfigError
from adafuse_integrations.cli.prompt_files.earlier import Earlier, writing
from adafuse_integrations.cli.prompt_files.lines import STANDARD, Line


class Answers:
    """Writes each record as soon as those of all earlier lines are written.

    Args:
        file: Where the records go.
        name: Name of the file in errors.
        todo: The lines that will be answered, in order.

    Attributes:
        todo: The same lines.
    """

    def __init__(self, file: BinaryIO, name: str, todo: Sequence[Line]) -> None:
        self.todo = tuple(todo)
        self._file, self._name = file, name
        self._waiting: dict[int, bytes] = {}
        self._written = 0

    def add(self, line: Line, record: bytes) -> None:
        """Write the record of a line now, or after those of earlier lines."""
        self._waiting[line.number] = record
        while self._written < len(self.todo) and self.todo[self._written].number in self._waiting:
            self._write(self._waiting.pop(self.todo[self._written].number))
            self._written += 1

    def write_waiting(self) -> None:
        """Write the records that wait for earlier ones, because no more will be added."""
        for number in sorted(self._waiting):
            self._write(self._waiting.pop(number))

    def _write(self, record: bytes) -> None:
        with writing(self._name):
            self._file.write(record)
            self._file.flush()


@contextmanager
def open_answers(path: str, lines: Sequence[Line], settings: Mapping[str, Any], *, restart: bool) -> Iterator[Answers]:
    """Open the answers of the lines that have none yet. At the end, the file is in the order of the input.

    Args:
        path: Path of the file; `-` for standard output, which has no earlier answers.
        lines: All lines of the input.
        settings: What the answers depend on, as plain JSON values. They are saved beside the file.
        restart: Whether earlier answers are deleted.

    Raises:
        ConfigError: The file can't be continued: it has other settings, answers to other lines, or another process
            writes it.
        AdaFuseError: The file can't be written.
    """
    if path == STANDARD:
        yield Answers(sys.stdout.buffer, "<stdout>", lines)
        return
    place = _place(path)
    with _locked(place):
        earlier = Earlier(place, settings)
        kept = {} if restart else earlier.answers(lines)
        earlier.replace(kept)
        todo = [line for line in lines if line.number not in kept]
        with place.open("ab") as file:
            answers = Answers(file, path, todo)
            try:
                yield answers
            finally:
                answers.write_waiting()
        if kept and todo and todo[0].number < max(kept):
            earlier.sort()


def _place(path: str) -> Path:
    """The file behind links; raises `ConfigError` if there can be none."""
    place = Path(path).resolve()
    if place.exists() and not place.is_file():
        raise ConfigError(f"can't write answers to {path!r}: it is not a file", hint="for standard output, write -")
    if not place.parent.is_dir():
        raise ConfigError(f"can't write {path!r}: there is no folder {str(place.parent)!r}", hint="create it first")
    return place


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(place.with_name(f"{place.name}.lock"), timeout=0)
    with writing(str(place)):
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(f"another process is writing {str(place)!r}", hint="wait for its end") from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems delete no file that is open
            Path(lock.lock_file).unlink()
        lock.release()
