"""Tool calls of earlier turns in the formats that chat templates expect, and a check that a rendering contains them.

Some templates dump arguments as JSON, some print them as given, some iterate over them, and some require IDs of nine
characters. A conversation is therefore rendered in one format after another, until the result contains all arguments.
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
    """Arguments as JSON text; the content is None if a turn with calls has no text."""
    return {**_json_text(turn), "content": None} if turn.get("tool_calls") and not turn["content"] else _json_text(turn)


def _json_values(turn: Turn) -> Turn:
    """Each argument as JSON text; strings are unchanged."""

    def dump_values(arguments: dict[str, Any]) -> dict[str, str]:
        return {key: value if isinstance(value, str) else _dumps(value) for key, value in arguments.items()}

    return _with_arguments(turn, dump_values)


SHAPES: Sequence[Callable[[Turn], Turn]] = (_mapping, _openai, _json_text, _json_values)


def shaped(messages: Sequence[Message]) -> Iterator[list[Turn]]:
    """The conversation in every distinct shape, the usual one first."""
    tried: list[list[Turn]] = []
    with_tools = any(message.tool_calls or message.role == "tool" for message in messages)
    for conversation in (messages, with_short_ids(messages)) if with_tools else (messages,):
        for shape in SHAPES:
            turns = [shape(message.to_dict()) for message in conversation]
            if turns not in tried:
                tried.append(turns)
                yield turns


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """The messages with call IDs of nine characters. Every result gets the ID of its call.

    A result without a known call ID is matched to the first call without a result (of the same tool, if it has a name).
    """
    short: dict[str | None, str] = {}
    open_calls: list[ToolCall] = []  # with new IDs, without results
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
    """The messages with one call per assistant turn, each followed by its result."""
    turns: list[Message] = []
    waiting: list[Message] = []  # turns with the other calls of the same message
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
    """Whether a rendering contains arguments as JSON, either as a whole or every name and value."""
    return _contains(dict(arguments), text)


def _contains(value: Any, text: str) -> bool:
    if isinstance(value, str):
        stripped = value.strip()
        return any(form in text for form in (stripped, _dumps(stripped)[1:-1], json.dumps(stripped)[1:-1]))
    if not isinstance(value, dict | list):
        return _dumps(value) in text
    if _dumps(value) in text:
        return True
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return str(value) not in text and all(_contains(part, text) for part in parts)  # Python's repr is not JSON


def _answered(result: Message, calls: Sequence[ToolCall]) -> str | None:
    """The ID of the call to which a result without an ID belongs."""
    return next((call.id for call in calls if result.name in (None, call.name)), None)


def _with_arguments(turn: Turn, form: Callable[[dict[str, Any]], Any]) -> Turn:
    if "tool_calls" not in turn:
        return turn
    functions = [(call, call["function"]) for call in turn["tool_calls"]]
    calls = [{**call, "function": {**each, "arguments": form(each["arguments"])}} for call, each in functions]
    return {**turn, "tool_calls": calls}
