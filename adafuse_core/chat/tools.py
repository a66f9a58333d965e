"""Tools of a request: which may be called, how members are told of them, and what a call may be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

from adafuse_core.chat.dialects import SHARED
from adafuse_core.chat.dialects.base import Dialect, quoted
from adafuse_core.chat.grammar import ANY_TEXT, Grammar
from adafuse_core.chat.messages import Message
from adafuse_core.errors import ConfigError

CHOICES = ("auto", "any", "required", "none")
_THOUGHT = f'thought[lazy]: /\\s*<think>/ {ANY_TEXT} "</think>"\nNEWLINES: /\\n+/\n'


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What an answer may call.

    Args:
        schemas: In OpenAI's form, `{"type": "function", "function": {"name", "description", "parameters"}}`.
        forced: Whether the answer must call one.
        only: The one tool that may be called, once; None for all.
        parallel: Whether an answer may call several times.
    """

    schemas: tuple[dict[str, Any], ...]
    forced: bool
    only: str | None
    parallel: bool

    @classmethod
    def of_request(cls, schemas: Sequence[Mapping[str, Any]] | None, choice: str, parallel: bool) -> Self | None:
        """The tools of a request, checked; None if nothing may be called.

        Raises:
            ConfigError: A tool has no valid schema, or `choice` names none of them.
        """
        checked = tuple(_schema(tool) for tool in schemas or ())
        names = [tool["function"]["name"] for tool in checked]
        if len(set(names)) < len(names):
            raise ConfigError(f"got tools of the same name: {names}", hint="give each tool a name of its own")
        if choice not in (*CHOICES, *names):
            expected = ", ".join(map(repr, (*CHOICES, *names)))
            raise ConfigError(f"got tool_choice={choice!r}, expected one of {expected}")
        if not names and choice in ("any", "required"):
            raise ConfigError(f"got tool_choice={choice!r} without tools", hint="give tools")
        if not names or choice == "none":
            return None
        only = None if choice in CHOICES else choice
        tools = cls(schemas=checked, forced=choice != "auto", only=only, parallel=parallel and only is None)
        _ = tools._arguments  # a schema that can't be enforced is told at once
        return tools

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tools that may be called."""
        return tuple(function["name"] for function in self._callable)

    def grammar(self, dialect: Dialect, answer: Grammar | None) -> Grammar:
        """What an answer may be.

        Args:
            dialect: How calls are written.
            answer: What an answer without calls may be; None for any text.
        """
        calls = self._calls(dialect)
        parts = tuple((f"arguments_{index}", grammar) for index, grammar in enumerate(self._arguments))
        if self.forced:
            return Grammar(f"start: calls\n{calls}", parts)
        if answer is not None:
            return Grammar(f"start: calls | @text\n{self._calls_beside_json(dialect)}", (*parts, ("text", answer)))
        if dialect.after_text:  # but what stands in a thought is no call
            rest = _text(dialect.begin.removeprefix(dialect.trigger))
            return Grammar(
                f"start: answer | thought NEWLINES? answer\nanswer: TEXT | before {rest} call {self._more(dialect)}\n"
                f"{calls}{_THOUGHT}before[lazy]: ({ANY_TEXT} & ~/\\s*<think>(?s:.*)/) {_text(dialect.trigger)}\n"
                f"TEXT: {ANY_TEXT}\n",
                parts,
            )
        return Grammar(
            f"start: thought? (HEAD call {self._more(dialect)} | OTHER)\n{calls}{_THOUGHT}"
            f"HEAD: /\\n*/ {_text(dialect.head + dialect.begin)}\n"
            f"OTHER: {ANY_TEXT} & ~/\\n*{_regex(dialect.trigger)}(?s:.*)/\n",
            parts,
        )

    @cached_property
    def _callable(self) -> list[dict[str, Any]]:
        functions = [tool["function"] for tool in self.schemas]
        return [function for function in functions if self.only in (None, function["name"])]

    @cached_property
    def _arguments(self) -> list[Grammar]:
        return [
            Grammar.json_schema(function["parameters"], lenient=not function.get("strict"))
            for function in self._callable
        ]

    def _calls(self, dialect: Dialect) -> str:
        """Rules for one call from its name on, and for all calls of an answer."""
        variants = " | ".join(
            f"{_text(name + dialect.middle)} @arguments_{index}" for index, name in enumerate(map(quoted, self.names))
        )
        head = _text(dialect.head + dialect.begin)
        return f"calls: {head} call {self._more(dialect)}\ncall: ({variants}) {_text(dialect.end)}\n"

    def _calls_beside_json(self, dialect: Dialect) -> str:
        """The same where answers may be JSON too: the engine takes text apart greedily, so both need the same parts."""
        variants = " | ".join(
            f"{_json_parts(dialect.begin + name + dialect.middle)} @arguments_{index}"
            for index, name in enumerate(map(quoted, self.names))
        )
        between = f"({_json_parts(dialect.between or '')} call)*" if self._several(dialect) else ""
        return (
            f"calls: {_json_parts(dialect.head)} call {between} {_json_parts(dialect.tail)}\n"
            f"call: ({variants}) {_json_parts(dialect.end)}\n"
        )

    def _more(self, dialect: Dialect) -> str:
        more = f"({_text((dialect.between or '') + dialect.begin)} call)*" if self._several(dialect) else ""
        return f"{more} {_text(dialect.tail)}" if dialect.tail else more

    def _several(self, dialect: Dialect) -> bool:
        return self.parallel and dialect.between is not None


def told(messages: Sequence[Message], tools: Tools, dialect: Dialect = SHARED) -> tuple[Message, ...]:
    """A conversation in which tools, calls and results are text of a dialect, for templates that don't speak it."""
    return (Message(role="system", content=_instructions(tools, dialect)), *_as_text(messages, dialect))


def _as_text(messages: Sequence[Message], dialect: Dialect) -> list[Message]:
    plain = []
    for message in messages:
        if message.role == "tool":
            label = f"Result of {message.name}:\n" if message.name else ""
            plain.append(Message(role="user", content=f"<tool_response>\n{label}{message.content}\n</tool_response>"))
        elif message.tool_calls:
            text = f"{message.content}\n{dialect.write(message.tool_calls)}".strip()
            plain.append(replace(message, content=text, tool_calls=()))
        else:
            plain.append(message)
    return plain


def _instructions(tools: Tools, dialect: Dialect) -> str:
    """What members are told who know tools by no template of their own."""
    functions = [tool["function"] for tool in tools.schemas]
    shown = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    form = f'{dialect.head}{dialect.begin}NAME{dialect.middle}{{"PARAMETER": VALUE}}{dialect.end}{dialect.tail}'
    return (
        f"You can call these tools, each described as JSON:\n{shown}\n\n"
        f"When a tool helps, answer with a call in exactly this form:\n{form}\n\n"
        f"Its result follows between <tool_response> and </tool_response>. Then answer in your own words."
    )


def _schema(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise ConfigError(f"got {tool!r} as a tool, expected {form}")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ConfigError(f"the parameters of tool {name!r} are {parameters!r}, expected the JSON schema of an object")
    whole = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {**function, "parameters": whole}}


def _text(text: str) -> str:
    """A literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _json_parts(text: str) -> str:
    """Literals of the grammar, one for each part of JSON."""
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|: |, |[^":,]|[:,]', text, re.DOTALL)
    return " ".join(map(_text, parts))


def _regex(text: str) -> str:
    """A regular expression that matches just this text."""
    return "".join(f"\\{char}" if not char.isalnum() and not char.isspace() and char != '"' else char for char in text)
