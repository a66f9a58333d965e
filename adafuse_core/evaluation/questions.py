"""Questions with their accepted answers, read from JSONL files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from adafuse_core.checks import expect, expect_encodable, expect_integer
from adafuse_core.errors import ConfigError
from adafuse_core.json_lines import read_object


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
    expect(isinstance(data, str | Path), "data", data, "a path")
    try:
        path = Path(data).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"got data={str(data)!r}, but this user is unknown: {error}") from error
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
    them), and optionally with `context` and `id`. A field that is null counts as missing.

    Args:
        path: The file.
        split_context: Whether a question of several lines without `context` has its passage in all lines but the last.

    Raises:
        ConfigError: The file can't be read, or a line has another form.
    """
    lines = _read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")  # without the mark of some editors
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"{str(path)!r} has no questions")
    return tuple(
        _question(place, _object(path, number, line), f"{path}:{number}", split_context, number)
        for place, (number, line) in enumerate(rows)
    )


def _question(place: int, row: dict[str, Any], where: str, split_context: bool, number: int) -> Question:
    prompt, context = _text(row, "prompt", where), _text(row, "context", where) or ""
    text = prompt if row.get("question") is None else _text(row, "question", where)
    if text is not None and split_context and not context:
        context, _, text = text.strip().replace("\r\n", "\n").rpartition("\n")
    if text is None or not text.strip() or not (prompt is None or prompt.strip()):
        raise ConfigError(
            f"{where}: got question={row.get('question')!r} and prompt={prompt!r}, expected a text that is not blank"
        )
    label = row.get("id")
    return Question(
        place=place,
        label=str(number if label is None else label),
        text=text,
        golds=_golds(row, where),
        context=context,
        prompt=prompt or "",
    )


def _text(row: dict[str, Any], name: str, where: str) -> str | None:
    """The text of a field; None if it has none."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{where}: got {name}={value!r}, expected a text")
    expect_encodable(f"{name} in {where}", value or "")
    return value


def _golds(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """The accepted answers without duplicates."""
    given = [row[name] for name in ("answer", "answers") if row.get(name) is not None]
    listed = given[0] if given and isinstance(given[0], list) else given
    if len(given) > 1 or not listed or not all(_is_gold(gold) for gold in listed):
        raise ConfigError(
            f"{where}: got answer={row.get('answer')!r} and answers={row.get('answers')!r}, expected one of them, with "
            "a text, a number, or a list of them"
        )
    golds = tuple(dict.fromkeys(map(_written, listed)))
    for gold in golds:
        expect_encodable(f"answer in {where}", gold)
    return golds


def _is_gold(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _written(gold: str | float) -> str:
    """An accepted answer as text: a number with all its digits, without an exponent."""
    return f"{Decimal(repr(gold)):f}" if isinstance(gold, float) else str(gold)


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return read_object(line)
    except ValueError as error:
        raise ConfigError(f"{path}:{number}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {str(path)!r}: {error.strerror}") from error
