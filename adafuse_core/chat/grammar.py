"""Grammars for answers: what text is allowed.

A grammar is about text alone; `members.masks` works out what it means for a member's tokens. Parsing is llguidance's.
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
from adafuse_core.errors import ConfigError

logger = logging.getLogger(__name__)

ANY_TEXT = "/(?s:.*)/"
_OPERATORS = re.compile(r"[\\.+*?()|\[\]{}^$&~/#-]")
_ESCAPED = {"/": r"\/", "\n": r"\n"}
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
    def json_schema(cls, schema: Mapping[str, Any], *, lenient: bool = False, name: str = "JSON schema") -> Self:
        """JSON that obeys a schema, written as `json.dumps` writes it.

        Objects with `properties` take no others unless the schema says `additionalProperties`, or several of its parts
        describe one object.

        Args:
            schema: A JSON Schema.
            lenient: Whether keywords that can't be enforced are left out, with a warning in the log for each.
            name: What the schema is called in errors and in the log.

        Raises:
            ConfigError: The schema is no schema; or it can't be enforced, and `lenient` is not set.
        """
        try:
            rules, loosened = json_rules(schema, lenient=lenient)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error
        for keyword in loosened:
            logger.warning("%s: %s", name, keyword)
        return cls(rules)

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
        from adafuse_core.text.vocabulary import byte_matchers

        return Guide(byte_matchers()(self.source()).deep_copy(), self._literals())

    def _literals(self) -> tuple[bytes, ...]:
        """Texts that the rules name; of JSON schemas those in patterns, as the others show by single bytes."""
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
    """The expression of a rule for just this text."""
    return json.dumps(text, ensure_ascii=False)


def pattern(text: str) -> str:
    """A regular expression, to stand between slashes, for just this text."""
    return _OPERATORS.sub(r"\\\g<0>", text)


def _expect_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"got {name}={value!r}, expected a string")


def _unescaped(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:  # of the grammar's own escapes
        return ""
