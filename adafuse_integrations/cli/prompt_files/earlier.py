"""A file of answers that an earlier run has left, and the settings of that run in a file beside it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adafuse_core.errors import AdaFuseError, ConfigError
from adafuse_integrations.cli.prompt_files.lines import ADDED, Line, digest
from adafuse_integrations.cli.prompt_files.records import encoded

_RESTART = "use another output file, or --restart, which deletes these answers"


class Earlier:
    """The answers in a file, for a run with the same settings.

    Args:
        path: Path of the file, which may not exist yet.
        settings: What answers depend on, as plain JSON values.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._beside = path.with_name(f"{path.name}.run.json")

    def answers(self, lines: Sequence[Line]) -> dict[int, bytes]:
        """The records of answered lines, by the numbers that these lines have now.

        Records of failed lines are left out, as is a last record without line end, which was not written completely.

        Raises:
            ConfigError: The settings differ, a record can't be read, or a record answers none of the lines.
        """
        with writing(str(self._path)):
            contents = self._path.read_bytes() if self._path.exists() else b""
        if not contents:
            return {}
        records = [(text, self._record(row, text)) for row, text in enumerate(contents.split(b"\n")[:-1], 1)]
        if not records or not all("error" in record for _, record in records):
            self._check_settings()  # of a run without answers, nothing would be mixed
        numbers = defaultdict(list)
        for line in reversed(lines):
            numbers[line.digest].append(line.number)
        kept = {}
        for row, (text, record) in enumerate(records, 1):
            if "error" in record:
                continue
            fields = {name: value for name, value in record.items() if name not in ADDED}
            if not (same := numbers[digest(fields)]):
                raise ConfigError(f"line {row} of {self._name} answers a line that the input lacks", hint=_RESTART)
            number = same.pop()
            kept[number] = text + b"\n" if record["line"] == number else encoded({**record, "line": number})
        return kept

    def replace(self, records: Mapping[int, bytes]) -> None:
        """Replace the file by these records, in the order of their numbers, and save the settings."""
        _replace(self._path, (records[number] for number in sorted(records)))
        _replace(self._beside, [json.dumps(self._settings, indent=1, ensure_ascii=False).encode() + b"\n"])

    def sort(self) -> None:
        """Put the records of the file in the order of their numbers."""
        with writing(str(self._path)):
            rows = self._path.read_bytes().splitlines(keepends=True)
        _replace(self._path, sorted(rows, key=lambda row: int(json.loads(row)["line"])))

    @property
    def _name(self) -> str:
        return repr(str(self._path))

    def _check_settings(self) -> None:
        try:
            before = json.loads(self._beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._name} can't be continued, because {str(self._beside)!r} with its settings can't be read",
                hint=_RESTART,
            ) from error
        if changes := list(_differences(before, self._settings)):
            raise ConfigError(f"{self._name} was written with other settings: {'; '.join(changes)}", hint=_RESTART)

    def _record(self, row: int, text: bytes) -> dict[str, Any]:
        try:
            record = json.loads(text)
            if isinstance(record, dict) and isinstance(record["line"], int):
                return record
        except (ValueError, KeyError):
            pass
        raise ConfigError(f"line {row} of {self._name} is not an answer of an earlier run", hint=_RESTART)


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn errors of the file system into errors that name the file."""
    try:
        yield
    except OSError as error:
        raise AdaFuseError(f"can't read or write {path!r}: {error.strerror or error}") from error


def _replace(path: Path, contents: Iterable[bytes]) -> None:
    """Replace a file in one step, so that no moment has only a part of it."""
    part = path.with_name(f"{path.name}.part")
    with writing(str(path)):
        with part.open("wb") as file:
            file.writelines(contents)
        part.replace(path)


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """One text for each setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}".removeprefix("."))
    elif before != now:
        yield f"{name} was {json.dumps(before)[:80]}, now {json.dumps(now)[:80]}"
