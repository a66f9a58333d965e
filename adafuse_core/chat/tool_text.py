"""Tool descriptions, calls and results as text of messages, for chat templates that do not support them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from adafuse_core.calls import ToolCall
from adafuse_core.chat.dialects import SHARED
from adafuse_core.chat.dialects.base import Dialect
from adafuse_core.chat.messages import Message
from adafuse_core.chat.tools import Tools


def with_tool_instructions(messages: Sequence[Message], tools: Tools, dialect: Dialect = SHARED) -> tuple[Message, ...]:
    """The conversation after a system message with tool instructions. Its calls and results become text."""
    return (Message(role="system", content=_instructions(tools, dialect)), *calls_as_text(messages, dialect))


def calls_as_text(messages: Sequence[Message], dialect: Dialect | None = None) -> tuple[Message, ...]:
    """The conversation with tool calls and results as ordinary turns, in a dialect, or in plain words if it is None."""
    return tuple(_turn(message, dialect) for message in messages)


def _turn(message: Message, dialect: Dialect | None) -> Message:
    if message.role == "tool":
        return Message(role="user", content=_result(message, dialect))
    if message.tool_calls:
        text = f"{message.content}\n{_calls(message.tool_calls, dialect)}".strip()
        return replace(message, content=text, tool_calls=())
    return message


def _result(message: Message, dialect: Dialect | None) -> str:
    if dialect is None:
        label = f"Result of {message.name}" if message.name else "Tool result"
        return f"{label}: {message.content}"
    label = f"Result of {message.name}:\n" if message.name else ""
    return f"<tool_response>\n{label}{message.content}\n</tool_response>"


def _calls(calls: Sequence[ToolCall], dialect: Dialect | None) -> str:
    if dialect is not None:
        return dialect.write(calls)
    return "\n".join(f"Call of {call.name}: {json.dumps(call.arguments, ensure_ascii=False)}" for call in calls)


def _instructions(tools: Tools, dialect: Dialect) -> str:
    functions = [tool["function"] for tool in tools.schemas]
    shown = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    call = f"{dialect.begin}NAME{dialect.middle}{dialect.arguments.example}{dialect.end}"
    return (
        f"You can call these tools, each described as JSON:\n{shown}\n\n"
        f"When a tool helps, answer with a call in exactly this form:\n{dialect.head}{call}{dialect.tail}\n\n"
        f"Its result follows between <tool_response> and </tool_response>. Then answer in your own words."
    )
