"""LlamaIndex's chat messages as core messages. Content that members can't read, such as images, raises an error."""

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
    """Convert a conversation to core messages.

    A tool result of LlamaIndex's agents has the id of its call, but no tool name, which chat templates show. The name
    comes from the matching call.

    Raises:
        PromptError: A message can't be converted; see `to_message`.
    """
    return openai.with_tool_names(map(to_message, messages))


def to_message(message: ChatMessage) -> Message:
    """Convert a chat message to a core message.

    Text blocks, also those inside citation blocks, are joined by newlines, as in `ChatMessage.content`. Reasoning
    blocks and cache points (hints to hosted models) are dropped.

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
    """The tool calls of an assistant message, from its blocks, or from `additional_kwargs` in older messages."""
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return [
            {"id": block.tool_call_id, "name": block.tool_name, "arguments": _arguments(block.tool_kwargs)}
            for block in blocks
        ]
    calls = message.additional_kwargs.get("tool_calls") or ()
    return [call.model_dump() if isinstance(call, BaseModel) else call for call in calls]


def _arguments(given: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments of a call. The text of incomplete arguments becomes the argument `unfinished`."""
    if isinstance(given, dict):
        return given
    try:
        arguments = json.loads(given)
    except ValueError:
        arguments = None
    return arguments if isinstance(arguments, dict) else {"unfinished": given}
