"""What a dialect is: the fixed text around the name and the arguments of a call."""

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
        example: How instructions show arguments, with PARAMETER for a name and VALUE for a value.
        grammar: Of arguments that obey the JSON schema of an object, called like `Grammar.json_schema`.
        write: Arguments as text.
        read: What is known of arguments from a text that begins with them: their value, or None as long as they are not
            complete; their length in characters; and their JSON so far, which more text only extends.
    """

    example: str
    grammar: Callable[..., Grammar]
    write: Callable[[Mapping[str, Any]], str]
    read: Callable[[str], tuple[dict[str, Any] | None, int, str]]


def _read_json(text: str) -> tuple[dict[str, Any] | None, int, str]:
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except ValueError:  # not complete; or a number of thousands of digits
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
    """How calls are written: `head`, then `begin` NAME `middle` ARGUMENTS `end` for each, with `between`, then `tail`.

    Args:
        name: Of the dialect.
        trigger: What an answer that calls tools begins with; `head` and `begin` begin with it.
        begin: Up to the tool's name.
        middle: From the name to the arguments.
        other_middles: What models also write there, which is read alike.
        end: After the arguments.
        between: Between two calls; None where a turn has one call only.
        head: Before the first call.
        tail: After the last call.
        arguments: The syntax of the arguments.
        token: A control token that models write before their calls. It has no text, so no answer contains it.
        after_text: Whether text may come before the calls.
        marks: What chat templates of this dialect contain, all of it.
        unmarked: What they don't contain.
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
        """All that may stand between name and arguments."""
        return (self.middle, *self.other_middles)

    @property
    def line_end(self) -> str:
        """The blanks between two calls, which models also write after the last one; empty if more stands there."""
        return self.between if self.between is not None and self.between.isspace() else ""

    def fits(self, template: str) -> bool:
        """Whether a chat template was written for this dialect."""
        marked = bool(self.marks) and all(mark in template for mark in self.marks)
        return marked and not any(mark in template for mark in self.unmarked)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Calls as text."""
        texts = [
            f"{self.begin}{quoted(call.name)}{self.middle}{self.arguments.write(call.arguments)}{self.end}"
            for call in calls
        ]
        return self.head + (self.between or "\n").join(texts) + self.tail


def quoted(name: str) -> str:
    """A name as it stands between the quotes of JSON."""
    return json.dumps(name, ensure_ascii=False)[1:-1]
