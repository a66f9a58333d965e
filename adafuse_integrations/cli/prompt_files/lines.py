"""The lines of a file of prompts: parsing and checking, without models."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core.errors import ConfigError, PromptError
from adafuse_core.json_lines import read_object
from adafuse_core.request import PromptLike, checked_prompt
from adafuse_integrations.cli.prompt_files.template import Template

STANDARD = "-"  # as a path: standard input or standard output

# Fields that the output adds to those of the input. An input field of the same name is renamed.
ADDED = ("line", "answer", "finish_reason", "stop", "reasoning", "usage", "logprobs", "rounds", "error")
_RENAMED = {name: f"input_{name}" for name in ADDED}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the input.

    Args:
        number: Number of the line, from 1.
        fields: Fields of its JSON object, under the names that they have in the output; empty if it has none.
        prompt: What to answer: a text, or messages.
        problem: Why the line can't be answered.
    """

    number: int
    fields: Mapping[str, Any]
    prompt: PromptLike = ""
    problem: PromptError | None = None

    @property
    def messages(self) -> PromptLike:
        """The prompt as messages: a text becomes the message of a user."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt

    @property
    def digest(self) -> str:
        """Digest of the fields, by which an answer in the output is found again."""
        return digest(self.fields)


def read_lines(path: str, template: Template | None, *, raw: bool) -> list[Line]:
    """Read all lines of a file of prompts but the empty ones.

    Args:
        path: Path of the file; `-` for standard input, which is read to its end.
        template: Makes the prompts; None to take them from the fields `prompt` and `messages`.
        raw: Whether prompts are texts that the members continue, so that messages are refused.

    Raises:
        ConfigError: The file can't be read, or a placeholder of the template is a field of no line.
    """
    parsed = [_parse(number, line) for number, line in enumerate(_contents(path).split(b"\n"), 1) if line.strip()]
    if template is not None:
        _check_names(template, [fields for _, fields in parsed if isinstance(fields, dict)])
    return [_line(number, fields, template, raw=raw) for number, fields in parsed]


def digest(fields: Mapping[str, Any]) -> str:
    """Digest of the values of a JSON object, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _contents(path: str) -> bytes:
    try:
        contents = sys.stdin.buffer.read() if path == STANDARD else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path!r}: {error.strerror}") from error
    return contents.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8


def _parse(number: int, line: bytes) -> tuple[int, dict[str, Any] | PromptError]:
    """The number of a line and its fields, or why it has none."""
    try:
        return number, read_object(line)
    except ValueError as error:
        return number, PromptError(str(error))


def _check_names(template: Template, found: Sequence[Mapping[str, Any]]) -> None:
    known = dict.fromkeys(name for fields in found for name in fields)
    for name in template.names:
        if found and name not in known:
            raise ConfigError(
                f"unknown placeholder {{{name}}} in the template: no line has the field {name!r}",
                hint=f"the lines have {', '.join(known) or 'no fields'}",
            )


def _line(number: int, parsed: dict[str, Any] | PromptError, template: Template | None, *, raw: bool) -> Line:
    if isinstance(parsed, PromptError):
        return Line(number=number, fields={}, problem=parsed)
    try:
        fields = _renamed(parsed)
    except PromptError as problem:
        return Line(number=number, fields={}, problem=problem)
    try:
        prompt = _given_prompt(parsed, raw=raw) if template is None else template.fill(parsed)
        checked_prompt(prompt)
    except PromptError as problem:
        return Line(number=number, fields=fields, problem=problem)
    return Line(number=number, fields=fields, prompt=prompt)


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the names that they have in the output."""
    renamed = {_RENAMED.get(name, name): value for name, value in fields.items()}
    if len(renamed) < len(fields):
        twice = next(name for name in fields if _RENAMED.get(name) in fields)
        raise PromptError(
            f"the line has the fields {twice!r} and {_RENAMED[twice]!r}, but the output needs both names",
            hint="rename one of them",
        )
    return renamed


def _given_prompt(fields: Mapping[str, Any], *, raw: bool) -> PromptLike:
    """The prompt in the field `prompt` or `messages`."""
    text, messages = fields.get("prompt"), fields.get("messages")
    if (text is None) == (messages is None):
        raise PromptError(
            f"expected a field 'prompt' or 'messages', got {', '.join(map(repr, fields)) or 'no fields'}",
            hint="to make the prompts from other fields, use --template, such as --template '{question}'",
        )
    if messages is None:
        if not isinstance(text, str):
            raise PromptError(f"got prompt={text!r}, expected a text")
        return text
    if not isinstance(messages, list):
        raise PromptError(f"got messages={messages!r}, expected a list of messages")
    if raw:
        raise PromptError(
            "got 'messages' with --raw, which continues texts", hint="give a 'prompt', or leave out --raw"
        )
    return messages
