"""Grammars for answers: what text is allowed, and how far an answer has come in it.

A grammar speaks of text alone. What it means for a member's tokens is worked out in `members.masks`. Parsing is
llguidance's.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Self

from adafuse_core.chat.closing import shortest_end
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Span

logger = logging.getLogger(__name__)

ANY_TEXT = "/(?s:.*)/"
_ESCAPED = {"/": r"\/", "\n": r"\n"}
# JSON as `json.dumps` writes it, which is what models are trained on; and no room for endless blanks.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}
_OF_ONE_OBJECT = ("allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas")  # beside `properties`
_NOT_CLOSED = (*_OF_ONE_OBJECT, "patternProperties", "additionalProperties", "unevaluatedProperties")
_NESTED = ("items", "prefixItems", "anyOf", "oneOf", "allOf", "additionalProperties")  # schemas, or lists of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
_LITERALS = re.compile(r'"((?:[^"\\]|\\.)*)"|((?:\\[^\w\s]|[^\\\s"()\[\]{}*+?|.^$&~/])+)')


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

        Objects with `properties` take no others unless the schema says `additionalProperties`, or several of its parts
        speak of one object.

        Args:
            schema: A JSON Schema.
            lenient: Whether keywords that can't be enforced are left out, with a warning in the log.

        Raises:
            ConfigError: The schema is no schema, or can't be enforced.
        """
        if not isinstance(schema, Mapping):
            raise ConfigError(f"got {schema!r} as JSON schema, expected a mapping")
        try:
            closed = schema if _combines(schema) else _closed(schema)
            text = json.dumps({**closed, "x-guidance": {**_JSON_STYLE, "lenient": lenient}})
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
        _expect_text("pattern", pattern)
        escaped = re.sub(r"\\?([/\n])|\\.", lambda match: _ESCAPED.get(match[1], match[0]), pattern)
        return cls(f"start: /{escaped}/")._checked("regular expression", hint="see the syntax of Rust's regex crate")

    @classmethod
    def lark(cls, rules: str) -> Self:
        """Text by the rules of a context-free grammar in llguidance's Lark syntax; they begin at `start`."""
        _expect_text("rules", rules)
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
        return Guide(_matcher(self.source()).deep_copy(), self._literals())

    def after_thought(self) -> Grammar:
        """The same after the rest of a thought that the prompt began."""
        rules = f'start: thought NEWLINES? @unthought\nthought[lazy]: {ANY_TEXT} "</think>"\nNEWLINES: /\\n+/\n'
        return Grammar(rules, (("unthought", self),))

    def _literals(self) -> tuple[bytes, ...]:
        """Texts that the rules name; those of JSON schemas show by single bytes."""
        rules = [rules for rules in (grammar["lark_grammar"] for grammar in self._named("")) if "%json" not in rules]
        found = (match for rule in rules for match in _LITERALS.finditer(rule))
        texts = (_unescaped(match[0]) if match[2] is None else re.sub(r"\\(.)", r"\1", match[2]) for match in found)
        return tuple(dict.fromkeys(text.encode() for text in texts if text))

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
        literals: Texts that the grammar names, as bytes.
    """

    def __init__(self, matcher: Any, literals: Sequence[bytes] = ()) -> None:
        self._matcher = matcher
        self._literals = literals

    @cached_property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @cached_property
    def closing(self) -> str | None:
        """A short text after which the answer may end; None if none was found."""
        end = shortest_end(self._matcher, self._literals)
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
        return Guide(matcher, self._literals) if matcher.try_consume_tokens(data) == len(data) else None


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
    if not isinstance(schema, Mapping):
        return [_closed(item) for item in schema] if isinstance(schema, list | tuple) else schema
    inner = dict(schema)
    for key in _NESTED:
        if key in schema:
            inner[key] = _closed(schema[key])
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            inner[key] = {name: _closed(part) for name, part in schema[key].items()}
    named = isinstance(schema.get("properties"), Mapping) and not any(key in schema for key in _NOT_CLOSED)
    return {**inner, "additionalProperties": False} if named else inner


def _combines(schema: Any) -> bool:
    """Whether several parts of the schema speak of one object, so that none of them may close it to the others."""
    if not isinstance(schema, Mapping):
        return isinstance(schema, list | tuple) and any(map(_combines, schema))
    beside = schema.get("properties") and any(key in schema for key in _OF_ONE_OBJECT)
    several = isinstance(schema.get("allOf"), list | tuple) and len(schema["allOf"]) > 1
    named = (part for key in _NAMED if isinstance(schema.get(key), Mapping) for part in schema[key].values())
    return bool(beside) or several or any(_combines(schema.get(key)) for key in _NESTED) or any(map(_combines, named))


def _expect_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"got {name}={value!r}, expected a string")


def _unescaped(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:  # of the grammar's own escapes
        return ""
