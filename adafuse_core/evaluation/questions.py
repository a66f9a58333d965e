"""Questions with their accepted answers, read from JSONL files."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core.checks import expect_integer
from adafuse_core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of a data set.

    Args:
        place: Position in the file, from 0. It identifies the question within a run.
        label: The `id` in the file, or the number of the line.
        text: The question, or the text to translate.
        golds: Accepted answers; at least one.
        context: A passage that the question is about; "" for none.
        prompt: A whole prompt, in place of instruction, examples and question; "" for none.
    """

    place: int
    label: str
    text: str
    golds: tuple[str, ...]
    context: str = ""
    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A part of the questions of a file.

    Args:
        limit: Maximum number of questions; None for all.
        offset: Number of questions left out at the beginning, such as those used to choose options.
        shuffle: Seed of the order of the questions, before `offset` and `limit` apply; None for the order of the file.
    """

    limit: int | None = None
    offset: int = 0
    shuffle: int | None = None

    def __post_init__(self) -> None:
        expect_integer("offset", self.offset, at_least=0)
        if self.limit is not None:
            expect_integer("limit", self.limit, at_least=1)
        if self.shuffle is not None:
            expect_integer("shuffle", self.shuffle)

    def of(self, questions: Sequence[Question]) -> tuple[Question, ...]:
        """The selected questions.

        Raises:
            ConfigError: None is left.
        """
        ordered = list(questions)
        if self.shuffle is not None:
            random.Random(self.shuffle).shuffle(ordered)
        chosen = ordered[self.offset :][: self.limit]
        if not chosen:
            raise ConfigError(
                f"no question is left: the data has {len(ordered)}, and offset is {self.offset}",
                hint="choose a smaller offset",
            )
        return tuple(chosen)


def data_file(data: str | Path, names: Sequence[str]) -> Path:
    """The file with the questions of a task.

    Args:
        data: A file, or a folder that contains a file with one of the names.
        names: File names, most specific first.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return path
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        problem = (
            f"the folder {str(path)!r} has none of {', '.join(names)}" if path.is_dir() else f"no file {str(path)!r}"
        )
        raise ConfigError(problem, hint='give a JSONL file with one {"question": ..., "answer": ...} per line')
    return found[0]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(_read(path)).hexdigest()


def read_questions(path: Path, *, split_context: bool = False) -> tuple[Question, ...]:
    """The questions of a JSONL file.

    Each line is an object with `question` or `prompt`, with `answer` or `answers` (a string, a number, or a list of
    them), and optionally with `context` and `id`.

    Args:
        path: The file.
        split_context: Whether a question of several lines without `context` has its passage in all lines but the last.

    Raises:
        ConfigError: The file can't be read, or a line has another form.
    """
    lines = _decoded(path).split("\n")
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"{str(path)!r} has no questions")
    return tuple(
        _question(place, _object(path, number, line), f"{path}:{number}", split_context, number)
        for place, (number, line) in enumerate(rows)
    )


def _question(place: int, row: dict[str, Any], where: str, split_context: bool, number: int) -> Question:
    prompt, context = row.get("prompt") or "", row.get("context") or ""
    text: Any = row.get("question", prompt or None)
    if not all(isinstance(each, str) for each in (text, context, prompt)) or not text.strip():
        raise ConfigError(f"{where}: got question={text!r}, context={context!r} and prompt={prompt!r}, expected texts")
    if split_context and not context:
        context, _, text = text.rpartition("\n")
    golds = _golds(row.get("answers", row.get("answer")), where)
    label = str(row.get("id", number))
    return Question(place=place, label=label, text=text, golds=golds, context=context, prompt=prompt)


def _golds(value: Any, where: str) -> tuple[str, ...]:
    """The accepted answers without duplicates."""
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(gold, str | int | float) and not isinstance(gold, bool) for gold in listed):
        raise ConfigError(
            f"{where}: got answer={value!r}, expected a text or a list of texts", hint="write it as answer or answers"
        )
    return tuple(dict.fromkeys(str(gold) for gold in listed))


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}:{number} is not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}:{number}: got {line[:60]!r}, expected a JSON object")
    return row


def _decoded(path: Path) -> str:
    try:
        return _read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(path)!r} is not UTF-8: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r}: {error.strerror}") from error
