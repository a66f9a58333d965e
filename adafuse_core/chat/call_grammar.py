"""The grammar of an answer that may call tools, in a dialect.

Each function that returns rules writes one kind of answer; they begin at `start`.
"""

from __future__ import annotations

from adafuse_core.chat.dialects.base import Dialect, quoted
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.lark import ANY_TEXT, json_literals, literal, pattern
from adafuse_core.chat.thoughts import THINK, ThoughtTags
from adafuse_core.chat.tools import Tools


def answer_grammar(tools: Tools, dialect: Dialect, answer: Grammar | None = None, tags: ThoughtTags = THINK) -> Grammar:
    """What an answer may be.

    Args:
        tools: What it may call.
        dialect: How calls are written.
        answer: What an answer without calls may be; None for any text.
        tags: Around the thought that may begin an answer.
    """
    parts = tuple((f"arguments_{index}", part) for index, part in enumerate(tools.arguments(dialect.arguments)))
    if tools.forced:
        return Grammar(f"start: calls\n{_calls(tools, dialect)}", parts)
    if answer is not None:
        return Grammar(_calls_or_json(tools, dialect), (*parts, ("text", answer)))
    if dialect.after_text:
        return Grammar(_calls_after_text(tools, dialect, tags), parts)
    return Grammar(_calls_or_text(tools, dialect, tags), parts)


def _calls(tools: Tools, dialect: Dialect) -> str:
    """Rules for one `call` from its name on, and for all `calls` of an answer."""
    variants = " | ".join(
        f"{literal(name + dialect.middle)} @arguments_{index}" for index, name in enumerate(map(quoted, tools.names))
    )
    head = literal(dialect.head + dialect.begin)
    return f"calls: {head} call {_more(tools, dialect)}\ncall: ({variants}) {literal(dialect.end)}\n"


def _more(tools: Tools, dialect: Dialect) -> str:
    """What follows the first call of an answer."""
    several = f"({literal((dialect.between or '') + dialect.begin)} call)*" if _several(tools, dialect) else ""
    return f"{several} {literal(dialect.tail)}" if dialect.tail else several


def _several(tools: Tools, dialect: Dialect) -> bool:
    return tools.parallel and dialect.between is not None


def _calls_or_json(tools: Tools, dialect: Dialect) -> str:
    """Calls, or else an answer of the grammar `@text`.

    That grammar may be JSON too, which the engine cuts into parts greedily. So the fixed text of calls is cut alike.
    """
    variants = " | ".join(
        f"{json_literals(dialect.begin + name + dialect.middle)} @arguments_{index}"
        for index, name in enumerate(map(quoted, tools.names))
    )
    more = f"({json_literals(dialect.between or '')} call)*" if _several(tools, dialect) else ""
    return (
        f"start: calls | @text\n"
        f"calls: {json_literals(dialect.head)} call {more} {json_literals(dialect.tail)}\n"
        f"call: ({variants}) {json_literals(dialect.end)}\n"
    )


def _calls_after_text(tools: Tools, dialect: Dialect, tags: ThoughtTags) -> str:
    """Any text, then calls, if any. A call inside a thought is part of the thought."""
    rest = literal(dialect.begin.removeprefix(dialect.trigger))
    return (
        f"start: answer | thought NEWLINES? answer\n"
        f"answer: TEXT | before {rest} call {_more(tools, dialect)}\n"
        f"{_calls(tools, dialect)}{tags.rules}"
        f"before[lazy]: {tags.no_thought} {literal(dialect.trigger)}\n"
        f"TEXT: {ANY_TEXT}\n"
    )


def _calls_or_text(tools: Tools, dialect: Dialect, tags: ThoughtTags) -> str:
    """Calls, or else text that does not begin like a call."""
    return (
        f"start: thought? (HEAD call {_more(tools, dialect)} | OTHER)\n"
        f"{_calls(tools, dialect)}{tags.rules}"
        f"HEAD: /\\n*/ {literal(dialect.head + dialect.begin)}\n"
        f"OTHER: {ANY_TEXT} & ~/\\n*{pattern(dialect.trigger)}(?s:.*)/\n"
    )
