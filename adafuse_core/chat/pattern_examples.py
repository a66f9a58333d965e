"""Short texts that match a regular expression, for the search for a short ending of an answer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

_RECENT = 1024  # patterns whose examples are cached
_LONGEST = 1000  # characters
_CHARACTERS = "A0a -_.,:;@/+#!'(){}[]<>=%&$*?~^|\"\\"  # tried for a character class, in this order
_NAMING = (codes.LITERAL, codes.RANGE)
_CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d",
    codes.CATEGORY_NOT_DIGIT: r"\D",
    codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S",
    codes.CATEGORY_WORD: r"\w",
    codes.CATEGORY_NOT_WORD: r"\W",
}


@lru_cache(_RECENT)
def example(pattern: str) -> str:
    """A short text that the pattern probably matches; empty if Python can't read the pattern."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about syntax whose meaning will change
            return _shortest(parser.parse(pattern))
    except (re.error, ValueError, OverflowError, RecursionError):
        return ""


def _shortest(items: Iterable[tuple[Any, Any]]) -> str:
    text = "".join(_of_item(code, value) for code, value in items)
    if len(text) > _LONGEST:
        raise OverflowError("too long")
    return text


def _of_item(code: Any, value: Any) -> str:
    if code is codes.LITERAL:
        return chr(value)
    if code in (codes.IN, codes.ANY, codes.NOT_LITERAL):
        return _one_of([(code, value)] if code is not codes.IN else value)
    if code is codes.BRANCH:
        return min((_shortest(branch) for branch in value[1]), key=len)
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        return _shortest(value[2]) * int(value[0]) if value[0] else ""
    if code is codes.SUBPATTERN:
        return _shortest(value[-1])
    return ""  # an anchor or look-around


def _one_of(parts: list[tuple[Any, Any]]) -> str:
    """A character in a class: the first such one in `_CHARACTERS`, else the first one that the class names."""
    negated = parts[0][0] is codes.NEGATE
    named = [chr(value if code is codes.LITERAL else value[0]) for code, value in parts if code in _NAMING]
    candidates: list[str] = [*_CHARACTERS, *named]
    for character in candidates:
        if any(_has(part, character) for part in parts) != negated:
            return character
    raise OverflowError("no character found")


def _has(part: tuple[Any, Any], character: str) -> bool:
    code, value = part
    if code is codes.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if code is codes.CATEGORY:
        return re.match(_CATEGORIES[value], character) is not None
    if code is codes.ANY:
        return True
    return (ord(character) == value) == (code is codes.LITERAL) and code is not codes.NEGATE
