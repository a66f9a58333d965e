"""LangChain's messages as core messages. Content that members can't read, such as images, raises an error."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from adafuse_core.chat import messages as core
from adafuse_core.chat import openai
from adafuse_core.chat.messages import Message
from adafuse_core.errors import PromptError

_ROLES: dict[type[BaseMessage], str] = {
    SystemMessage: "system",
    HumanMessage: "user",
    AIMessage: "assistant",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}
_REASONING = ("reasoning", "thinking", "redacted_thinking", "reasoning_content")
_CALLS = ("tool_call", "tool_use", "function_call")
_PARTS = ("tool_call_chunk", "input_json_delta")  # of calls that streamed; the message has the calls themselves
_INVALID = "invalid_tool_call"
_RESULT = "tool_result"

Block = Mapping[str, Any]


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Convert a conversation to core messages.

    The text blocks of a message are joined. Reasoning of earlier turns is dropped. Tool results inside a user message
    become separate messages. A tool result gets the name of its tool from the matching call.

    Raises:
        PromptError: A block holds an image, audio, video or file, or its type is unknown; or a role is unknown.
    """
    return openai.with_tool_names(Message.from_any(turn) for message in messages for turn in _turns(message))


def countable(messages: Sequence[BaseMessage]) -> list[Message]:
    """As `to_messages`, for token counting: of blocks that members can't read, only the text is kept."""
    return openai.with_tool_names(turn for message in messages for turn in _readable(message))


def _readable(message: BaseMessage) -> list[Message]:
    try:
        return to_messages([message])
    except PromptError:
        parts = [{"text": block.get("text")} for block in _blocks(message.content)]
        role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), "user")
        return [*core.countable([{"role": role, "content": parts, "tool_calls": getattr(message, "tool_calls", None)}])]


def check_text(messages: Sequence[BaseMessage]) -> None:
    """Check that LangChain can convert messages to one text without loss. LangChain drops all blocks but text.

    Reasoning and tool calls of the assistant are allowed: reasoning is not part of the prompt, and LangChain writes the
    calls of a message into the text.

    Raises:
        PromptError: A block is not text.
    """
    for message in messages:
        allowed = (*_REASONING, *_CALLS, *_PARTS, _INVALID) if isinstance(message, AIMessage) else ()
        for block in _blocks(message.content):
            kind = block.get("type")
            if kind not in ("text", *allowed):
                raise _unreadable(kind, message.type)


def _turns(message: BaseMessage) -> Iterator[dict[str, Any]]:
    """The turn of a message, after one turn for each tool result among its blocks."""
    role, blocks = _role(message), _blocks(message.content)
    results = [block for block in blocks if block.get("type") == _RESULT]
    rest = [block for block in blocks if block.get("type") != _RESULT]
    for block in results:
        yield _result(block, role)
    if not rest and results:
        return
    turn: dict[str, Any] = {"role": role, "content": _text(rest, role), "name": message.name}
    if role == "assistant":
        calls, invalid = _calls(message, rest)
        turn["tool_calls"] = calls
        turn["content"] = "\n".join([text for text in (turn["content"], *invalid) if text])
    elif role == "tool":
        turn["tool_call_id"] = getattr(message, "tool_call_id", None)
        turn["content"] = _tool_result(turn["content"], failed=getattr(message, "status", None) == "error")
    yield turn


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return openai.role(message.role)
    for kind, role in _ROLES.items():
        if isinstance(message, kind):
            return role
    raise PromptError(f"got a message of type {message.type!r}, which can't be part of a conversation")


def _blocks(content: str | list[Any]) -> list[Block]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [{"type": "text", "text": block} if isinstance(block, str) else block for block in content]


def _text(blocks: Sequence[Block], role: str) -> str:
    return "".join(_block_text(block, role) for block in blocks)


def _block_text(block: Block, role: str) -> str:
    """The text of a block. Empty for the assistant's reasoning, and for its calls, which `_calls` reads."""
    kind = block.get("type", "text" if "text" in block else None)
    if role == "assistant" and kind in (*_REASONING, *_CALLS, *_PARTS, _INVALID):
        return ""
    if role == "assistant" and kind == "refusal" and isinstance(block.get("refusal"), str):
        return str(block["refusal"])
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == "text-plain" and isinstance(block.get("text"), str):
        return "\n".join(block[part] for part in ("title", "context", "text") if block.get(part))
    raise _unreadable(kind, role)


def _unreadable(kind: Any, role: str) -> PromptError:
    return PromptError(
        f"got a content block of type {kind!r} in a message of role {role!r}, expected text",
        hint="members read text only",
    )


def _calls(message: BaseMessage, blocks: Sequence[Block]) -> tuple[list[dict[str, Any]], list[str]]:
    """The valid calls of an assistant's turn, and its invalid calls as texts."""
    calls = [_call(call["name"], call["args"], call.get("id")) for call in getattr(message, "tool_calls", ())]
    invalid = [*getattr(message, "invalid_tool_calls", ())]
    known = {call.get("id") for call in (*calls, *invalid)}
    for block in blocks:
        call_id = block.get("call_id", block.get("id"))  # OpenAI's `id` is that of the block
        if call_id in known:
            continue
        if block.get("type") in _CALLS:
            arguments: Any = next((block[name] for name in ("args", "input", "arguments") if name in block), {})
            calls.append(_call(block.get("name"), arguments, call_id))
        elif block.get("type") == _INVALID:
            invalid.append(block)
    legacy = message.additional_kwargs.get("function_call")  # OpenAI's form before `tool_calls`
    if legacy and not calls:
        try:
            calls.append(_call(legacy["name"], json.loads(legacy["arguments"] or "{}"), None))
        except ValueError:
            invalid.append({"name": legacy["name"], "args": legacy["arguments"]})
    return calls, [f"Invalid call of {call.get('name')}: {call.get('args')}" for call in invalid]


def _call(name: Any, arguments: Any, call_id: str | None) -> dict[str, Any]:
    return {"id": call_id, "name": name, "arguments": arguments}


def _result(block: Block, role: str) -> dict[str, Any]:
    """The turn of a tool result that is a block of a user message."""
    if role != "user":
        raise PromptError(
            f"got a content block of type {_RESULT!r} in a message of role {role!r}, expected role 'user'"
        )
    text = _text(_blocks(block.get("content") or ""), "tool")
    content = _tool_result(text, failed=bool(block.get("is_error")))
    return {"role": "tool", "content": content, "tool_call_id": block.get("tool_use_id"), "name": None}


def _tool_result(text: str, *, failed: bool) -> str:
    """The text of a tool result. The text of a failed call starts with "Error"."""
    return text if not failed or text.lower().startswith("error") else f"Error: {text}"
