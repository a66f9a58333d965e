"""The grammar of an answer that may contain tool calls in a dialect."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from adafuse_core.chat.dialects.base import Dialect, quoted
from adafuse_core.chat.grammar import ANY_TEXT, Grammar, literal, pattern
from adafuse_core.chat.thoughts import THINK, ThoughtTags
from adafuse_core.chat.tools import Tools


def answer_grammar(tools: Tools, dialect: Dialect, answer: Grammar | None = None, tags: ThoughtTags = THINK) -> Grammar:
    """The grammar of tool calls or, unless a call is forced, of text that obeys `answer` (any text if None)."""
    parts = tuple((f"arguments_{index}", part) for index, part in enumerate(tools.arguments(dialect.arguments)))
    if tools.forced:
        return Grammar(f"start: calls\n{_calls(tools, dialect)}", parts)
    if answer is not None:
        return Grammar(_calls_or_json(tools, dialect), (*parts, ("text", answer)))
    if dialect.after_text:
        return Grammar(_calls_after_text(tools, dialect, tags), parts)
    return Grammar(_calls_or_text(tools, dialect, tags), parts)


def _calls(tools: Tools, dialect: Dialect) -> str:
    """Rules: `call` is a call without the text before its name, `calls` all calls of an answer."""
    head = literal(dialect.head + dialect.begin)
    middles = (dialect.middle,) if tools.forced else dialect.middles
    variants = _variants(tools, "", middles, literal)
    return f"calls: {head} call {_more(tools, dialect)}\ncall: ({variants}) {literal(dialect.end)}\n"


def _variants(tools: Tools, begin: str, middles: Sequence[str], cut: Callable[[str], str]) -> str:
    names = [(index, quoted(name), middle) for index, name in enumerate(tools.names) for middle in middles]
    return " | ".join(f"{cut(begin + name + middle)} @arguments_{index}" for index, name, middle in names)


def _more(tools: Tools, dialect: Dialect) -> str:
    """Expression for the rest after the first call. The answer may end after any call, or after its line end."""
    several = f"({literal((dialect.between or '') + dialect.begin)} call)*" if _several(tools, dialect) else ""
    line_end = f" {literal(dialect.line_end)}?" if several and dialect.line_end else ""
    return f"{several} {literal(dialect.tail)}" if dialect.tail else several + line_end


def _several(tools: Tools, dialect: Dialect) -> bool:
    return tools.parallel and dialect.between is not None


def _calls_or_json(tools: Tools, dialect: Dialect) -> str:
    """Calls, or the grammar `@text`. The engine lexes JSON greedily, so the calls are split into the same lexemes."""
    more = f"({_json_parts(dialect.between or '')} call)*" if _several(tools, dialect) else ""
    variants = _variants(tools, dialect.begin, (dialect.middle,), _json_parts)
    return (
        f"start: calls | @text\ncalls: {_json_parts(dialect.head)} call {more} {_json_parts(dialect.tail)}\n"
        f"call: ({variants}) {_json_parts(dialect.end)}\n"
    )


def _json_parts(text: str) -> str:
    parts = re.findall(r'"(?:[^"\\]|\\.)*"|: |, |[^":,]|[:,]', text, re.DOTALL)
    return " ".join(map(literal, parts))


def _calls_after_text(tools: Tools, dialect: Dialect, tags: ThoughtTags) -> str:
    """Any text, then optional calls. Calls inside a thought belong to the thought."""
    rest = literal(dialect.begin.removeprefix(dialect.trigger))
    return (
        f"start: answer | thought NEWLINES? answer\nanswer: TEXT | before {rest} call {_more(tools, dialect)}\n"
        f"{_calls(tools, dialect)}{tags.rules}before[lazy]: {tags.no_thought} {literal(dialect.trigger)}\n"
        f"TEXT: {ANY_TEXT}\n"
    )


def _calls_or_text(tools: Tools, dialect: Dialect, tags: ThoughtTags) -> str:
    """Calls, or text that does not start like a call."""
    return (
        f"start: thought? (HEAD call {_more(tools, dialect)} | OTHER)\n{_calls(tools, dialect)}{tags.rules}"
        f"HEAD: /\\n*/ {literal(dialect.head + dialect.begin)}\n"
        f"OTHER: {ANY_TEXT} & ~/\\n*{pattern(dialect.trigger)}(?s:.*)/\n"
    )
