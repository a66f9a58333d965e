"""What the grammar engine says of a JSON schema, and the keywords that it accepts in silence and does not keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from adafuse_core.chat.endings import QUICK, find_ending
from adafuse_core.chat.pattern_examples import example

_RECENT = 4096  # parts of schemas of which it is remembered what is wrong
_LONGEST = 10_000  # characters, items or properties that an answer can be asked for; more were never found an end for
_PRECISE = 1 << 53  # integers up to here are exact in the engine's arithmetic
_LAST = (1 << 63) - 1  # integer of the engine
_UNKNOWN = "the grammar engine does not know this keyword"
_ONE_OF = "a value could obey several of its parts"
_OF_OLD = ("disallow", "divisibleBy", "extends", "contentSchema")  # keywords that the engine skips in silence
_PATTERN = re.compile(r'"pattern": ("(?:[^"\\]|\\.)*")')
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")  # of characters, in a regular expression
_PLAIN = re.compile(r"(?:(?<!\\)[A-Za-z0-9@ _:,;-]{2,}|(?<=\\)[^\w\s\\])(?![*+?{])")


@lru_cache(_RECENT)
def engine_fault(schema: str) -> str | None:
    """Why the engine can't enforce a schema, given as JSON; None if it can, with an answer that comes to an end."""
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
        return "no value was found that obeys it, or only very long ones"
    return None


def unkept(part: Mapping[str, Any]) -> dict[str, str]:
    """Keywords that the engine takes and does not keep, or only with an answer that is too long; with the reason."""
    found = {key: _UNKNOWN for key in _OF_OLD if key in part}
    if part.get("contentMediaType") == "application/json":
        found["contentMediaType"] = "JSON inside a string is not checked"
    for key in ("minLength", "minItems", "minProperties"):
        if _is_number(part.get(key)) and part[key] > _LONGEST:
            found[key] = f"no answer is that long; at most {_LONGEST} can be asked for"
    if _may_repeat_keys(part):
        found.setdefault("minProperties", "the grammar engine lets one key be written twice")
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if _is_imprecise(part.get(key)) and not (key == "maximum" and part[key] >= _LAST):
            found[key] = "the grammar engine does not tell such large integers apart"
    for key in ("enum", "const"):
        if key in part and any(map(_is_imprecise, _numbers(part[key]))):
            found[key] = "the grammar engine does not tell such large integers apart"
    return found


def _may_repeat_keys(part: Mapping[str, Any]) -> bool:
    """Whether an answer could have as many properties as it must by writing one of them twice."""
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
    """Whether the engine, which computes with floats, takes an integer for another one."""
    return isinstance(value, int) and abs(value) > _PRECISE and (abs(value) > _LAST or int(float(value)) != value)


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(inner)
    else:
        yield value


def pattern_literals(schema: str) -> tuple[bytes, ...]:
    """Texts for the patterns of a schema that is given as JSON, as JSON: examples of matches, then plain parts."""
    patterns = dict.fromkeys(json.loads(match[1]) for match in _PATTERN.finditer(schema))
    examples = (json.dumps(example(pattern), ensure_ascii=False)[1:-1] for pattern in patterns)
    parts = (match[0] for pattern in patterns for match in _PLAIN.finditer(_CLASS.sub("\0", pattern)))
    return tuple(dict.fromkeys(text.encode() for text in (*examples, *parts) if text))


def _first_line(problem: str) -> str:
    """What the engine says is wrong, without what it says about where."""
    text = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: ", "", problem).split("\n   1 | ")[0]
    if text.startswith("Unimplemented keys"):
        return _UNKNOWN
    return _ONE_OF if text.startswith("oneOf not fully supported") else re.sub(r"\s+", " ", text).strip()
