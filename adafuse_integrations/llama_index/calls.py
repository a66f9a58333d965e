"""Tool calls between LlamaIndex and the core: what may be called, what was called, finished or not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llama_index.core.base.llms.types import ChatResponse, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool
from pydantic import BaseModel
from pydantic_core import from_json

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.chat import openai
from adafuse_core.errors import ConfigError
from adafuse_integrations.common.python_schemas import type_schema


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call, or the beginning of one.

    Args:
        id: Its own in the answer.
        name: Of the tool.
        text: Its arguments as they were written so far.
        arguments: The same as values; of an unfinished one, what can be read already.
        error: What is wrong with it, if it was never finished right.
    """

    id: str
    name: str
    text: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @classmethod
    def done(cls, call: ToolCall | InvalidToolCall) -> Self:
        """A call that was written to its end, or to where the answer ended."""
        if isinstance(call, InvalidToolCall):
            return cls(id=call.id or "", name=call.name or "", text=call.arguments, error=call.error)
        text = json.dumps(call.arguments, ensure_ascii=False)
        return cls(id=call.id or "", name=call.name, text=text, arguments=call.arguments)

    def extended(self, text: str) -> Self:
        """The call with more of its arguments."""
        text = self.text + text
        return dataclasses.replace(self, text=text, arguments=_readable(text))

    def as_block(self) -> ToolCallBlock:
        """As part of a message. Of a wrong one the arguments are the text, so that nobody runs it."""
        return ToolCallBlock(
            tool_call_id=self.id, tool_name=self.name, tool_kwargs=self.arguments if self.error is None else self.text
        )

    def as_dict(self) -> dict[str, Any]:
        """The same in OpenAI's form."""
        function = {"name": self.name, "arguments": self.text}
        wrong = {} if self.error is None else {"error": self.error}
        return {"id": self.id, "type": "function", "function": function, **wrong}


def shown(tool: BaseTool) -> dict[str, Any]:
    """A tool as members are told of it. Its name stays as it is, so that the call finds it.

    Raises:
        ConfigError: Its arguments are a class that contains itself.
    """
    data = tool.metadata
    if data.fn_schema is not None and not can_be_run(data.fn_schema):
        raise ConfigError(
            f"the arguments of tool {data.get_name()!r} are a class that contains itself; LlamaIndex can't run it",
            hint="make it a field of another class, or ask for the object with structured_predict",
        )
    parameters = data.get_parameters_dict() if data.fn_schema is None else type_schema(data.fn_schema)
    parameters = {key: value for key, value in parameters.items() if key not in ("title", "description")}
    return {
        "type": "function",
        "function": {"name": data.get_name(), "description": data.description, "parameters": parameters},
    }


def can_be_run(arguments: type[BaseModel]) -> bool:
    """Whether LlamaIndex finds a class's fields where it runs calls: not if the class contains itself."""
    return "$ref" not in arguments.model_json_schema()


def choice(given: Any, *, required: bool) -> str:
    """What must be called, in the core's words: "auto", "any", "none" or the name of a tool.

    Args:
        given: In any form that `adafuse_core.chat.openai` reads.
        required: Whether a call has to be made.

    Raises:
        ConfigError: It is in none of them, or a call is both required and ruled out.
    """
    named = openai.tool_choice(given) or "auto"
    if required and named == "none":
        raise ConfigError("got tool_required=True with tool_choice='none'", hint="give one of them")
    return "any" if required and named == "auto" else named


def selections(response: ChatResponse) -> list[ToolSelection]:
    """The calls of a response, which may be a part of a stream. Nothing is parsed here, so it is cheap.

    A call that was never finished right gets a name that says so. No tool has that name, so an agent
    runs nothing and reports it to the model.
    """
    wrong = {call.get("id"): call["error"] for call in _listed(response) if "error" in call}
    return [_selection(block, wrong) for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def faults(response: ChatResponse) -> list[str]:
    """What is wrong with the calls of a response."""
    return [
        f"call of {call['function']['name']!r} with {call['function']['arguments']!r}: {call['error']}"
        for call in _listed(response)
        if "error" in call
    ]


def _listed(response: ChatResponse) -> Sequence[Mapping[str, Any]]:
    calls = response.message.additional_kwargs.get("tool_calls") or ()
    return [call for call in calls if isinstance(call, Mapping)]


def _selection(block: ToolCallBlock, wrong: Mapping[Any, str]) -> ToolSelection:
    name = block.tool_name
    if block.tool_call_id in wrong:
        name = f"{name} (not run: {wrong[block.tool_call_id]})"
    arguments = block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {}
    return ToolSelection(tool_id=block.tool_call_id or "", tool_name=name, tool_kwargs=arguments)


def _readable(text: str) -> dict[str, Any]:
    """What can be read of a JSON object that is still being written."""
    try:
        value = from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
