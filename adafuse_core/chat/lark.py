"""Pieces of grammar rules, in llguidance's Lark syntax."""

from __future__ import annotations

import json
import re

ANY_TEXT = "/(?s:.*)/"
_JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"|: |, |[^":,]|[:,]', re.DOTALL)
_OPERATORS = re.compile(r"[\\.+*?()|\[\]{}^$&~/#-]")


def literal(text: str) -> str:
    """The expression for just this text."""
    return json.dumps(text, ensure_ascii=False)


def json_literals(text: str) -> str:
    """The same as a sequence of literals, cut where the engine cuts JSON."""
    return " ".join(map(literal, _JSON_PARTS.findall(text)))


def pattern(text: str) -> str:
    """A regular expression, to stand between slashes, that matches just this text."""
    return _OPERATORS.sub(r"\\\g<0>", text)
