"""A dialect: the fixed text around the name and arguments of a tool call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from adafuse_core.calls import ToolCall
from adafuse_core.chat.grammar import Grammar


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A syntax for the arguments of a call.

    Args:
        example: Example for instructions, with placeholders PARAMETER and VALUE.
        grammar: Function from a JSON schema to the grammar of the arguments, with the signature of
            `Grammar.json_schema`.
        write: Function from arguments to text.
        read: Function that parses a text starting with arguments. Returns the arguments, or None while they are
            incomplete; their length in characters; and their JSON so far, which grows as text is added.
    """

    example: str
    grammar: Callable[..., Grammar]
    write: Callable[[Mapping[str, Any]], str]
    read: Callable[[str], tuple[dict[str, Any] | None, int, str]]


def _read_json(text: str) -> tuple[dict[str, Any] | None, int, str]:
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:  # incomplete, or an integer with thousands of digits
        return None, len(text), text
    return value, end, text[:end]


JSON = Arguments(
    example='{"PARAMETER": VALUE}',
    grammar=Grammar.json_schema,
    write=partial(json.dumps, ensure_ascii=False),
    read=_read_json,
)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A format of tool calls: `head`, calls separated by `between`, `tail`.

    Each call is `begin`, the name of the tool, `middle`, the arguments, and `end`.

    Args:
        name: Name of the dialect.
        trigger: Text that starts the calls; a prefix of `head` + `begin`.
        begin: Text before the tool's name.
        middle: Text between name and arguments.
        other_middles: Alternatives to `middle` that models also write.
        end: Text after the arguments.
        between: Text between two calls; None if an answer may contain one call only.
        head: Text before the first call.
        tail: Text after the last call.
        arguments: Syntax of the arguments.
        token: Control token that models write before their calls. It is not part of the answer's text.
        after_text: Whether text may precede the calls.
        marks: Texts that all chat templates of this dialect contain.
        unmarked: Texts that none of these templates contains.
    """

    name: str
    trigger: str
    begin: str
    middle: str
    end: str
    between: str | None
    other_middles: tuple[str, ...] = ()
    head: str = ""
    tail: str = ""
    arguments: Arguments = JSON
    token: str | None = None
    after_text: bool = False
    marks: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()

    @property
    def middles(self) -> tuple[str, ...]:
        """All texts that may separate name and arguments."""
        return (self.middle, *self.other_middles)

    @property
    def line_end(self) -> str:
        """`between` if it is whitespace, which models also write after the last call; else empty."""
        return self.between if self.between is not None and self.between.isspace() else ""

    def fits(self, template: str) -> bool:
        """Whether a chat template was written for this dialect."""
        marked = bool(self.marks) and all(mark in template for mark in self.marks)
        return marked and not any(mark in template for mark in self.unmarked)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Format calls as text."""
        texts = [
            f"{self.begin}{quoted(call.name)}{self.middle}{self.arguments.write(call.arguments)}{self.end}"
            for call in calls
        ]
        return self.head + (self.between or "\n").join(texts) + self.tail


def quoted(name: str) -> str:
    """A name with JSON escapes, without quotes."""
    return json.dumps(name, ensure_ascii=False)[1:-1]
