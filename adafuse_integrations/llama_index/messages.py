"""LlamaIndex's chat messages as core messages. Nothing is left out in silence: what has no text is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic import BaseModel

from adafuse_core.chat import openai
from adafuse_core.chat.messages import Message
from adafuse_core.errors import PromptError


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """A conversation in the core's form.

    LlamaIndex's agents say of a tool result only which call it answers; the tool's name, which templates show, is
    taken from that call.

    Raises:
        PromptError: As of `to_message`.
    """
    return openai.with_tool_names(map(to_message, messages))


def to_message(message: ChatMessage) -> Message:
    """A chat message in the core's form.

    Text blocks are joined by newlines, as `ChatMessage.content` does; of quoted blocks the text is
    taken. Thinking is no part of what was said and cache points are advice to hosted models:
    both are passed over.

    Raises:
        PromptError: A block holds an image, audio, video or document, or a tool call is malformed.
    """
    if not isinstance(message, ChatMessage):
        raise PromptError(f"got {message!r} as a message, expected a ChatMessage")
    role = openai.role(message.role.value)
    return Message.from_any(
        {
            "role": role,
            "content": "\n".join(_texts(message.blocks)),
            "tool_calls": _tool_calls(message) if role == "assistant" else (),
            "tool_call_id": message.additional_kwargs.get("tool_call_id") if role == "tool" else None,
            "name": message.additional_kwargs.get("name") if role == "tool" else None,
        }
    )


def _texts(blocks: Sequence[Any]) -> list[str]:
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, CitableBlock | CitationBlock):
            texts += _texts(block.nested_blocks)
        elif not isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
            kind = getattr(block, "block_type", type(block).__name__)
            raise PromptError(f"got a content block of type {kind!r}, expected text", hint="members read text only")
    return texts


def _tool_calls(message: ChatMessage) -> list[dict[str, Any]]:
    """The calls of an assistant turn, from its blocks or, in older code, from `additional_kwargs`."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [
            {"id": block.tool_call_id, "name": block.tool_name, "arguments": _arguments(block.tool_kwargs)}
            for block in blocks
        ]
    calls = message.additional_kwargs.get("tool_calls") or ()
    return [call.model_dump() if isinstance(call, BaseModel) else call for call in calls]


def _arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments of a call; those of a call that was never finished as what there is of them."""
    if isinstance(given, dict):
        return given
    try:
        read = json.loads(given)
    except ValueError:
        read = None
    return read if isinstance(read, dict) else {"unfinished": given}
