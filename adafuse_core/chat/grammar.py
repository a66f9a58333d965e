"""Grammars that constrain the text of an answer.

A grammar knows text only; `members.masks` derives token masks for each member. The parser is llguidance.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from adafuse_core.chat.guide import Guide
from adafuse_core.chat.json_schemas import json_rules
from adafuse_core.chat.schema_engine import pattern_literals
from adafuse_core.checks import expect_encodable
from adafuse_core.errors import ConfigError

logger = logging.getLogger(__name__)

ANY_TEXT = "/(?s:.*)/"
_OPERATORS = re.compile(r"[\\.+*?()|\[\]{}^$&~/#-]")
_ESCAPED = {"/": r"\/", "\n": r"\n"}
_LITERALS = re.compile(r'"((?:[^"\\]|\\.)*)"|((?:\\[^\w\s]|[^\\\s"()\[\]{}*+?|.^$&~/])+)')


_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|(?<!/)/(?![/*])(?:[^/\\\n]|\\.)+/')  # texts and patterns in rules
_COMMENTS = re.compile(r"//.*")
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Grammar:
    """A constraint on the text of an answer. Create one with a class method.

    Args:
        rules: Rules in llguidance's Lark syntax. The first rule is `start`.
        parts: Grammars by name, which the rules use as `@name`.
    """

    rules: str
    parts: tuple[tuple[str, Grammar], ...] = field(default=())

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], *, lenient: bool = False, name: str = "JSON schema") -> Self:
        """JSON that obeys a JSON Schema, formatted like the output of `json.dumps`.

        Objects with `properties` allow no other properties, unless the schema contains `additionalProperties` or
        several of its parts describe the same object.

        Args:
            schema: A JSON Schema.
            lenient: Whether keywords that can't be enforced are relaxed, with a warning in the log for each.
            name: Name of the schema in errors and in the log.

        Raises:
            ConfigError: The schema is invalid; or a keyword can't be enforced, and `lenient` is False.
        """
        try:
            rules, relaxed = json_rules(schema, lenient=lenient)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error
        for keyword in relaxed:
            logger.warning("%s: %s", name, keyword)
        return cls(rules)

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that a regular expression matches as a whole. Rust syntax: no look-around or back-references."""
        _expect_text("pattern", pattern)
        escaped = re.sub(r"\\?([/\n])|\\.", lambda match: _ESCAPED.get(match[1], match[0]), pattern)
        return cls(f"start: /{escaped}/")._checked("regular expression", hint="see the syntax of Rust's regex crate")

    @classmethod
    def lark(cls, rules: str) -> Self:
        """Text of a context-free grammar in llguidance's Lark syntax. The first rule is `start`."""
        _expect_text("rules", rules)
        if special := _SPECIAL_TOKEN.search(_COMMENTS.sub("", _QUOTED.sub("", rules))):
            raise ConfigError(
                f"got {special[0]} in the grammar, which is a special token of one vocabulary",
                hint="a grammar describes text: the end of the answer needs no token",
            )
        return cls(rules)._checked("grammar", hint="see llguidance's description of its Lark syntax")

    def source(self, *, lead: str = "") -> str:
        """The whole grammar as JSON for the engine, optionally preceded by the fixed text `lead`."""
        # "no_forcing" allows every tokenization of forced text, not only the canonical one.
        rules = f'%llguidance {{"no_forcing": true}}\nstart: {json.dumps(lead) if lead else ""} @answer'
        grammars = [{"name": "whole", "lark_grammar": rules}]
        return json.dumps({"grammars": [*grammars, *self._named("answer")]})

    def guide(self) -> Guide:
        """The parser state at the beginning of an answer."""
        from adafuse_core.text.vocabulary import byte_matchers

        return Guide(byte_matchers()(self.source()).deep_copy(), self._literals())

    def _literals(self) -> tuple[bytes, ...]:
        """Literal texts in the rules. Of JSON schemas, only texts in patterns: the search finds others byte by byte."""
        every = [grammar["lark_grammar"] for grammar in self._named("")]
        of_schemas = (text for rules in every if "%json" in rules for text in pattern_literals(rules))
        found = (match for rules in every if "%json" not in rules for match in _LITERALS.finditer(rules))
        texts = (_unescaped(match[0]) if match[2] is None else re.sub(r"\\(.)", r"\1", match[2]) for match in found)
        return tuple(dict.fromkeys((*(text.encode() for text in texts if text), *of_schemas)))

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


def literal(text: str) -> str:
    """A Lark string literal for a text."""
    return json.dumps(text, ensure_ascii=False)


def pattern(text: str) -> str:
    """A regular expression for a text, to be placed between slashes."""
    return _OPERATORS.sub(r"\\\g<0>", text)


def _expect_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"got {name}={value!r}, expected a string")
    expect_encodable(name, value)


def _unescaped(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:  # an escape that JSON does not have
        return ""
