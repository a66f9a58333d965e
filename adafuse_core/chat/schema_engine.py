"""Whether the grammar engine can enforce a JSON schema, and which keywords it silently ignores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from adafuse_core.chat.endings import QUICK, find_ending
from adafuse_core.chat.pattern_examples import example

_CACHED = 4096  # schemas
_MAX_LENGTH = 10_000  # characters, items or properties: no ending was ever found for longer answers
_MAX_EXACT = 1 << 53  # the engine computes with floats, in which larger integers are not exact
_MAX_INTEGER = (1 << 63) - 1
_UNKNOWN = "the grammar engine does not know this keyword"
_IMPRECISE = "the grammar engine does not tell such large integers apart"
_SKIPPED = ("disallow", "divisibleBy", "extends", "contentSchema")  # silently, by the engine
_PATTERN = re.compile(r'"pattern": ("(?:[^"\\]|\\.)*")')
_CHARACTER_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_PLAIN_TEXT = re.compile(r"(?:(?<!\\)[A-Za-z0-9@ _:,;-]{2,}|(?<=\\)[^\w\s\\])(?![*+?{])")


@lru_cache(_CACHED)
def engine_error(schema: str) -> str | None:
    """Why the engine can't enforce a schema, given as JSON; None if it can, and a complete answer was found."""
    from llguidance import LLMatcher

    from adafuse_core.text.vocabulary import byte_engine

    rules = f'%llguidance {{"no_forcing": true}}\nstart: %json {schema}'
    source = json.dumps({"grammars": [{"name": "whole", "lark_grammar": rules}]})
    matcher = LLMatcher(byte_engine(), source, log_level=0)
    if matcher.is_error():
        return _first_line(matcher.get_error())
    if warnings := matcher.get_grammar_warnings():
        return _first_line(warnings[0])
    if find_ending(matcher, pattern_literals(schema), QUICK) is None:
        return "the search found no value that obeys the schema, or only very long ones"
    return None


def ignored_keywords(part: Mapping[str, Any]) -> dict[str, str]:
    """Keywords that the engine accepts but does not enforce, or only with very long answers, with reasons."""
    found = {key: _UNKNOWN for key in _SKIPPED if key in part}
    if part.get("contentMediaType") == "application/json":
        found["contentMediaType"] = "JSON inside a string is not checked"
    for key in ("minLength", "minItems", "minProperties"):
        if _is_number(part.get(key)) and part[key] > _MAX_LENGTH:
            found[key] = f"no answer is that long; the maximum is {_MAX_LENGTH}"
    if _may_repeat_keys(part):
        found.setdefault("minProperties", "the grammar engine accepts a key that occurs twice")
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if _is_imprecise(part.get(key)) and not (key == "maximum" and part[key] >= _MAX_INTEGER):
            found[key] = _IMPRECISE
    for key in ("enum", "const"):
        if key in part and any(map(_is_imprecise, _scalars(part[key]))):
            found[key] = _IMPRECISE
    return found


def _may_repeat_keys(part: Mapping[str, Any]) -> bool:
    """Whether an answer could reach `minProperties` with a duplicate key."""
    least, required = part.get("minProperties"), part.get("required")
    if (
        least is None
        or not _is_number(least)
        or (part.get("additionalProperties") is False and not part.get("patternProperties"))
    ):
        return False
    return bool(least > 1 + len(required if isinstance(required, list) else ()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_imprecise(value: Any) -> bool:
    """Whether the engine may confuse an integer with another one."""
    if not isinstance(value, int) or abs(value) <= _MAX_EXACT:
        return False
    return abs(value) > _MAX_INTEGER or int(float(value)) != value


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _scalars(inner)
    else:
        yield value


def pattern_literals(schema: str) -> tuple[bytes, ...]:
    """JSON texts to try where a schema has patterns: examples of matches, then literal parts of the patterns."""
    patterns = dict.fromkeys(json.loads(match[1]) for match in _PATTERN.finditer(schema))
    examples = (json.dumps(example(pattern), ensure_ascii=False)[1:-1] for pattern in patterns)
    parts = (match[0] for pattern in patterns for match in _PLAIN_TEXT.finditer(_CHARACTER_CLASS.sub("\0", pattern)))
    return tuple(dict.fromkeys(text.encode() for text in (*examples, *parts) if text))


def _first_line(problem: str) -> str:
    """The first line of an engine error, without its source position."""
    text = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: ", "", problem).split("\n   1 | ")[0]
    if text.startswith("Unimplemented keys"):
        return _UNKNOWN
    if text.startswith("oneOf not fully supported"):
        return "a value could match several of its options"
    return re.sub(r"\s+", " ", text).strip()
