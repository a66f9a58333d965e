"""Earlier tool calls in the shapes that chat templates ask for, and whether a rendering shows them.

Some templates dump arguments as JSON, some print them as they get them, some take them apart, and some demand ids of
nine characters. So a conversation is offered to a template in each shape, until its rendering shows all arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from adafuse_core.calls import ToolCall
from adafuse_core.chat.messages import Message

Turn = dict[str, Any]  # a message as templates read it

_dumps = json.JSONEncoder(ensure_ascii=False).encode


def _mapping(turn: Turn) -> Turn:
    return turn


def _json_text(turn: Turn) -> Turn:
    """Arguments as JSON text."""
    return _with_arguments(turn, _dumps)


def _openai(turn: Turn) -> Turn:
    """Arguments as JSON text, and no content beside calls where there is no text."""
    return {**_json_text(turn), "content": None} if turn.get("tool_calls") and not turn["content"] else _json_text(turn)


def _json_values(turn: Turn) -> Turn:
    """Each argument as JSON text, but for strings, which stay as they are."""
    return _with_arguments(turn, lambda arguments: {key: _plain(value) for key, value in arguments.items()})


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _dumps(value)


SHAPES: Sequence[Callable[[Turn], Turn]] = (_mapping, _openai, _json_text, _json_values)


def shaped(messages: Sequence[Message]) -> Iterator[list[Turn]]:
    """A conversation in every shape, the usual one first."""
    tried: list[list[Turn]] = []
    with_tools = any(message.tool_calls or message.role == "tool" for message in messages)
    for conversation in (messages, with_short_ids(messages)) if with_tools else (messages,):
        for shape in SHAPES:
            turns = [shape(message.to_dict()) for message in conversation]
            if turns not in tried:
                tried.append(turns)
                yield turns


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages; their calls with ids of nine characters, and each result with the id of the call it answers.

    A result that names no known call answers the first one without a result, of its tool if it names one.
    """
    short: dict[str | None, str] = {}
    open_calls: list[ToolCall] = []  # with the new ids
    renamed = []
    for message in messages:
        calls = tuple(replace(call, id=f"call{len(short) + at:05}") for at, call in enumerate(message.tool_calls))
        for old, new in zip(message.tool_calls, calls, strict=True):
            short[old.id or new.id] = str(new.id)
        open_calls += calls
        if message.role == "tool":
            answered = short.get(message.tool_call_id) or _answered(message, open_calls) or f"call{len(short):05}"
            short.setdefault(message.tool_call_id or answered, answered)
            open_calls = [call for call in open_calls if call.id != answered]
            message = replace(message, tool_call_id=answered)
        renamed.append(replace(message, tool_calls=calls))
    return renamed


def one_call_per_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages; an assistant's turn with several calls as several turns, each followed by its result."""
    turns: list[Message] = []
    waiting: list[Message] = []  # further turns of one call
    for message in messages:
        if waiting and message.role != "tool":
            turns += waiting
            waiting = []
        turns += [message] if len(message.tool_calls) < 2 else [replace(message, tool_calls=message.tool_calls[:1])]
        if message.role == "tool" and waiting:
            turns.append(waiting.pop(0))
        waiting += [Message(role="assistant", tool_calls=(call,)) for call in message.tool_calls[1:]]
    return (*turns, *waiting)


def shows(arguments: Mapping[str, Any], text: str) -> bool:
    """Whether arguments stand in a rendering as JSON: at once, or name by name with their values."""
    return _stands(dict(arguments), text)


def _stands(value: Any, text: str) -> bool:
    if isinstance(value, str):
        stripped = value.strip()
        return any(form in text for form in (stripped, _dumps(stripped)[1:-1], json.dumps(stripped)[1:-1]))
    if not isinstance(value, dict | list):
        return _dumps(value) in text
    if _dumps(value) in text:
        return True
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return str(value) not in text and all(_stands(part, text) for part in parts)  # Python's notation is no JSON


def _answered(result: Message, calls: Sequence[ToolCall]) -> str | None:
    """The id of the call that a result without an id answers."""
    return next((call.id for call in calls if result.name in (None, call.name)), None)


def _with_arguments(turn: Turn, form: Callable[[dict[str, Any]], Any]) -> Turn:
    if "tool_calls" not in turn:
        return turn
    functions = [(call, call["function"]) for call in turn["tool_calls"]]
    calls = [{**call, "function": {**each, "arguments": form(each["arguments"])}} for call, each in functions]
    return {**turn, "tool_calls": calls}
