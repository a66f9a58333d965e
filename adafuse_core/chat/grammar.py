"""Grammars for answers: what text is allowed, and how far an answer has come in it.

A grammar speaks of text alone. What it means for a member's tokens is worked out in `members.masks`. Parsing is
llguidance's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Self

from adafuse_core.chat.closing import shortest_end
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Span

logger = logging.getLogger(__name__)

# JSON as `json.dumps` writes it, which is what models are trained on; and no room for endless blanks.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_NOT_CLOSED = ("allOf", "patternProperties", "additionalProperties", "unevaluatedProperties")


@dataclass(frozen=True)
class Grammar:
    """What an answer may be. Made by the class methods.

    Args:
        rules: In llguidance's Lark syntax, beginning at `start`.
        parts: Further grammars that the rules name as `@name`.
    """

    rules: str
    parts: tuple[tuple[str, Grammar], ...] = field(default=())

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], *, lenient: bool = False) -> Self:
        """JSON that obeys a schema, written as `json.dumps` writes it.

        Objects with `properties` take no others unless the schema says `additionalProperties`.

        Args:
            schema: A JSON Schema.
            lenient: Whether keywords that can't be enforced are left out, with a warning in the log.

        Raises:
            ConfigError: The schema is no schema, or can't be enforced.
        """
        if not isinstance(schema, Mapping):
            raise ConfigError(f"got {schema!r} as JSON schema, expected a mapping")
        try:
            text = json.dumps({**_closed(schema), "x-guidance": {**_JSON_STYLE, "lenient": lenient}})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the JSON schema {schema!r} is not plain JSON: {error}") from error
        return cls(f"start: %json {text}")._checked("JSON schema", hint="leave out what can't be enforced")

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that a regular expression (of Rust's kind: no look-around, no back-references) matches as a whole."""
        escaped = pattern.replace("/", r"\/").replace("\n", r"\n")
        return cls(f"start: /{escaped}/")._checked("regular expression", hint="see the syntax of Rust's regex crate")

    @classmethod
    def lark(cls, rules: str) -> Self:
        """Text by the rules of a context-free grammar in llguidance's Lark syntax; they begin at `start`."""
        return cls(rules)._checked("grammar", hint="see llguidance's description of its Lark syntax")

    def source(self, *, lead: str = "") -> str:
        """The whole grammar in the form the engine takes.

        Args:
            lead: Text that goes before.
        """
        # Without forcing, all tokens are allowed that the text can go on with, not one encoding of what must follow.
        rules = f'%llguidance {{"no_forcing": true}}\nstart: {json.dumps(lead) if lead else ""} @answer'
        grammars = [{"name": "whole", "lark_grammar": rules}]
        return json.dumps({"grammars": [*grammars, *self._named("answer")]})

    def guide(self) -> Guide:
        """The beginning of an answer."""
        return Guide(_matcher(self.source()).deep_copy())

    def _named(self, name: str) -> list[dict[str, str]]:
        inner = [grammar for part, whole in self.parts for grammar in whole._named(part)]
        return [{"name": name, "lark_grammar": self.rules}, *inner]

    def _checked(self, kind: str, *, hint: str) -> Self:
        from llguidance import LLMatcher

        wrong, problems = LLMatcher.validate_grammar_with_warnings(self.source())
        if wrong:
            raise ConfigError(f"the {kind} can't be enforced: {problems[0]}", hint=hint)
        for problem in problems:
            logger.warning("%s: %s", kind, problem)
        return self


class Guide:
    """How far an answer has come in its grammar. Never changed: what follows is another guide.

    Args:
        matcher: The engine's state, on bytes as tokens.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @cached_property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @cached_property
    def closing(self) -> str | None:
        """A short text after which the answer may end; None if none was found."""
        end = shortest_end(self._matcher)
        return None if end is None else end.decode()

    @cached_property
    def forced(self) -> Span | None:
        """What follows here in every answer; None if there is a choice."""
        text = self._matcher.compute_ff_bytes().decode("utf-8", "ignore")  # a last character may have its first bytes
        after = self.after(text) if text else self
        ends = after is not None and bool(after._matcher.is_stopped())
        return Span(text=text, ends=ends) if text or ends else None

    def after(self, text: str) -> Guide | None:
        """The guide after more text; None if the grammar does not allow it."""
        matcher = self._matcher.deep_copy()
        data = list(text.encode())
        return Guide(matcher) if matcher.try_consume_tokens(data) == len(data) else None


@lru_cache(maxsize=64)
def _matcher(source: str) -> Any:
    from llguidance import LLMatcher

    matcher = LLMatcher(_bytes(), source, log_level=0)
    if matcher.is_error():
        raise ConfigError(f"the grammar can't be used: {matcher.get_error().splitlines()[0]}")
    return matcher


@lru_cache(maxsize=1)
def _bytes() -> Any:
    from adafuse_core.text.vocabulary import byte_vocabulary

    return byte_vocabulary()


def _closed(schema: Any) -> Any:
    """The schema, its objects closed to properties that it does not name: models would make some up."""
    if isinstance(schema, Mapping):
        inner = {
            key: value if key in ("enum", "const", "default", "examples") else _closed(value)
            for key, value in schema.items()
        }
        named = isinstance(schema.get("properties"), Mapping) and not any(key in schema for key in _NOT_CLOSED)
        return {**inner, "additionalProperties": False} if named else inner
    return [_closed(item) for item in schema] if isinstance(schema, list | tuple) else schema
