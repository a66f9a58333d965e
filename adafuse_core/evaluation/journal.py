"""The folder of a run: what is run, and every answer as soon as it is given, so that a killed run can be resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from adafuse_core.errors import ConfigError
from adafuse_core.evaluation.answers import Answer
from adafuse_core.json_lines import strict

ANSWERS, RUN, LOCK = "answers.jsonl", "run.json", "run.lock"

Key = tuple[int, str]  # of an answer: position of the question, name of the system

_ABSENT = object()


class Journal:
    """The answers of a run on disk. One process at a time can open it.

    Args:
        folder: The folder, which is made if it does not exist.
        facts: What the answers depend on, as JSON values.
        notes: What else is kept in `run.json`, such as the hardware.
        restart: Whether earlier answers in the folder are deleted.

    Attributes:
        facts: What the answers depend on.
        notes: What else is in `run.json`, from the start of the run.
        answers: The answers so far by question and system, without their traces, which may be large; see `trace`.

    Raises:
        ConfigError: The folder has answers of a run with other facts, is in use, is damaged, or can't be written.
    """

    def __init__(
        self, folder: str | Path, facts: Mapping[str, Any], notes: Mapping[str, Any], *, restart: bool = False
    ) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = _hold(self.folder)
        except OSError as error:
            raise ConfigError(f"can't write into {str(self.folder)!r}: {error.strerror}") from error
        try:
            self.facts, self.notes = self._opened(json.loads(json.dumps(strict(facts))), notes, restart)
            self.answers, self._places = read_answers(self.folder / ANSWERS)
            self._file = (self.folder / ANSWERS).open("ab")
            self._end = self._file.seek(0, os.SEEK_END)
        except BaseException:
            self._held.release()
            raise

    def add(self, answer: Answer) -> None:
        """Append an answer. It is on disk when this returns."""
        line = json.dumps(answer.to_dict(), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.answers[answer.key] = dataclasses.replace(answer, trace=None)
            self._places[answer.key] = self._end
            self._end += len(line)

    def trace(self, key: Key) -> Sequence[Mapping[str, Any]] | None:
        """The recorded rounds of an answer, read from the file; None if they were not recorded. May be closed."""
        path = self.folder / ANSWERS
        with path.open("rb") as file:
            file.seek(self._places[key])
            return _answer(path, "answer", file.readline()).trace

    def close(self) -> None:
        """Let other processes open the folder."""
        self._file.close()
        self._held.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self, facts: Any, notes: Mapping[str, Any], restart: bool) -> tuple[Any, Any]:
        """Facts and notes of the same run; writes `run.json` if there is none."""
        run, answers = self.folder / RUN, self.folder / ANSWERS
        if restart:
            answers.unlink(missing_ok=True)
            run.unlink(missing_ok=True)
        if run.exists():
            earlier, notes = _read_run(run)
            _check_same(earlier, facts, self.folder)
        elif answers.exists():
            raise ConfigError(
                f"{str(answers)!r} has no {RUN} beside it", hint="choose another folder, or restart the run"
            )
        else:
            write_json(run, {"facts": facts, "notes": dict(notes)})
        return facts, notes


def read_answers(path: Path) -> tuple[dict[Key, Answer], dict[Key, int]]:
    """The answers of a file without their traces, and the offsets of their lines.

    The rest of a line that was being written when a process was killed is removed from the file.

    Raises:
        ConfigError: Another line is damaged.
    """
    answers: dict[Key, Answer] = {}
    places: dict[Key, int] = {}
    if not path.exists():
        return answers, places
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            answer = _answer(path, f"line {number}", line)
            answers[answer.key] = dataclasses.replace(answer, trace=None)
            places[answer.key] = end
            end += len(line)
    if path.stat().st_size > end:
        os.truncate(path, end)
    return answers, places


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step: readers see the old content or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogatepass")
    part.replace(path)


def _answer(path: Path, where: str, line: bytes) -> Answer:
    try:
        return Answer.from_dict(json.loads(line.decode("utf-8", "surrogatepass")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged ({where}): {error}", hint="choose another folder, or restart the run"
        ) from error


def _read_run(path: Path) -> tuple[Any, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        return run["facts"], run["notes"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"can't read {str(path)!r}: {error}", hint="choose another folder, or restart the run"
        ) from error


def _check_same(earlier: Any, now: Any, folder: Path) -> None:
    """Refuse to mix answers of runs that differ in anything the answers depend on."""
    if earlier != now:
        differing = ", ".join(_differences(earlier, now))
        raise ConfigError(
            f"{str(folder)!r} has answers of another run, which differs in: {differing}",
            hint="choose another folder, or restart the run (restart=True, --restart), which deletes these answers",
        )


def _differences(earlier: Any, now: Any, path: str = "") -> list[str]:
    """Paths of the values that differ, such as `systems.ensemble.tau`."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [path]
    names = [*earlier, *(name for name in now if name not in earlier)]
    return [
        found
        for name in names
        for found in _differences(
            earlier.get(name, _ABSENT), now.get(name, _ABSENT), f"{path}.{name}".removeprefix(".")
        )
    ]


def _hold(folder: Path) -> Any:
    """The lock of a folder."""
    from filelock import FileLock, Timeout

    try:
        return FileLock(folder / LOCK).acquire(timeout=0).lock
    except Timeout:
        raise ConfigError(f"another process is writing into {str(folder)!r}", hint="wait for it, or stop it") from None
