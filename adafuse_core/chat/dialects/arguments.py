"""The syntax of a call's arguments: JSON in most dialects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from adafuse_core.chat.grammar import Grammar


@dataclass(frozen=True, kw_only=True)
class ReadArguments:
    """What a text that begins with arguments contains of them.

    Args:
        value: The arguments; None as long as they are not complete.
        length: How many characters of the text they take.
        as_json: The beginning of their JSON that is known. More text only extends it.
    """

    value: dict[str, Any] | None
    length: int
    as_json: str


class Arguments(Protocol):
    """One syntax. It is hashable, since a dialect is."""

    @property
    def example(self) -> str:
        """Arguments as instructions show them: PARAMETER stands for a name, VALUE for a value."""

    def grammar(self, schema: Mapping[str, Any], *, lenient: bool) -> Grammar:
        """Arguments that obey the JSON schema of an object. See `Grammar.json_schema`."""

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Arguments as text."""

    def read(self, text: str) -> ReadArguments:
        """The arguments with which a text begins, complete or not."""


@dataclass(frozen=True)
class JsonArguments:
    """A JSON object."""

    example = '{"PARAMETER": VALUE}'

    def grammar(self, schema: Mapping[str, Any], *, lenient: bool) -> Grammar:
        """JSON that obeys the schema."""
        return Grammar.json_schema(schema, lenient=lenient)

    def write(self, arguments: Mapping[str, Any]) -> str:
        """JSON with all characters as they are."""
        return json.dumps(arguments, ensure_ascii=False)

    def read(self, text: str) -> ReadArguments:
        """The text itself is the JSON, as far as it goes."""
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:  # not complete; or a number of thousands of digits
            value, end = None, len(text)
        return ReadArguments(value=value, length=end, as_json=text[:end])


JSON = JsonArguments()
