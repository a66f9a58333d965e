"""Tool calls of an answer, complete or still streaming, in LlamaIndex's forms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from pydantic_core import from_json

from adafuse_core.calls import InvalidToolCall, ToolCall


@dataclass(frozen=True, kw_only=True)
class StreamedToolCall:
    """A tool call, complete or partial.

    Args:
        id: Id of the call, unique in the answer.
        name: Name of the tool.
        text: Arguments so far, as JSON text.
        arguments: Arguments so far, as values; for a partial call, those that can be parsed.
        error: Error message of an invalid call; None for a valid or partial call.
    """

    id: str
    name: str
    text: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @classmethod
    def finished(cls, call: ToolCall | InvalidToolCall) -> Self:
        """A complete call, valid or invalid."""
        if isinstance(call, InvalidToolCall):
            return cls(id=call.id or "", name=call.name or "", text=call.arguments, error=call.error)
        text = json.dumps(call.arguments, ensure_ascii=False)
        return cls(id=call.id or "", name=call.name, text=text, arguments=call.arguments)

    def extended(self, text: str) -> Self:
        """The call with more text of its arguments."""
        text = self.text + text
        return dataclasses.replace(self, text=text, arguments=_readable_arguments(text))

    def as_block(self) -> ToolCallBlock:
        """The call as a block of a message. Arguments of an invalid call are plain text, so that no agent runs it."""
        return ToolCallBlock(
            tool_call_id=self.id, tool_name=self.name, tool_kwargs=self.arguments if self.error is None else self.text
        )

    def as_dict(self) -> dict[str, Any]:
        """The call in OpenAI's form, with the key `error` for an invalid call."""
        function = {"name": self.name, "arguments": self.text}
        error = {} if self.error is None else {"error": self.error}
        return {"id": self.id, "type": "function", "function": function, **error}


def tool_selections(response: ChatResponse) -> list[ToolSelection]:
    """The calls of a response or chunk. Nothing is parsed here, so the call is cheap for each chunk.

    The name of an invalid call contains its error message. No tool has such a name, so an agent does not run the call
    and reports the name to the model.
    """
    errors = {call.get("id"): call["error"] for call in _openai_calls(response) if "error" in call}
    return [_selection(block, errors) for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def call_errors(response: ChatResponse) -> list[str]:
    """Descriptions of the invalid calls of a response."""
    return [
        f"call of {call['function']['name']!r} with {call['function']['arguments']!r}: {call['error']}"
        for call in _openai_calls(response)
        if "error" in call
    ]


def _openai_calls(response: ChatResponse) -> Sequence[Mapping[str, Any]]:
    calls = response.message.additional_kwargs.get("tool_calls") or ()
    return [call for call in calls if isinstance(call, Mapping)]


def _selection(block: ToolCallBlock, errors: Mapping[Any, str]) -> ToolSelection:
    name = block.tool_name
    if block.tool_call_id in errors:
        name = f"{name} (not run: {errors[block.tool_call_id]})"
    arguments = block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {}
    return ToolSelection(tool_id=block.tool_call_id or "", tool_name=name, tool_kwargs=arguments)


def _readable_arguments(text: str) -> dict[str, Any]:
    """The part of an incomplete JSON object that can be parsed."""
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
