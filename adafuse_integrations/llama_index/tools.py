"""Tools and tool choices that LlamaIndex users pass, converted to LlamaIndex's classes and OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import BaseTool
from pydantic import BaseModel

from adafuse_core.chat import openai
from adafuse_core.checks import several
from adafuse_core.errors import ConfigError
from adafuse_integrations.common.python_schemas import type_schema, without_title


def as_tools(tools: Iterable[BaseTool | Callable[..., Any]]) -> list[BaseTool]:
    """Convert plain functions among the tools to LlamaIndex tools.

    Raises:
        ConfigError: An item is neither a tool nor a function, or `tools` is a single item instead of a list.
    """
    return [_as_tool(tool) for tool in several("tools", tools, "write [tool]")]


def openai_tool(tool: BaseTool) -> dict[str, Any]:
    """A tool in OpenAI's form. The name is unchanged, so that LlamaIndex finds the tool of a call.

    Raises:
        ConfigError: LlamaIndex can't run the tool, because its arguments are a recursive class.
    """
    metadata = tool.metadata
    if metadata.fn_schema is not None and not supports_calls(metadata.fn_schema):
        raise ConfigError(
            f"the arguments of tool {metadata.get_name()!r} are a recursive class, which LlamaIndex does not support",
            hint="make the class a field of another class, or ask for the object with structured_predict",
        )
    parameters = metadata.get_parameters_dict() if metadata.fn_schema is None else type_schema(metadata.fn_schema)
    function = {
        "name": metadata.get_name(),
        "description": metadata.description,
        "parameters": without_title(parameters),
    }
    return {"type": "function", "function": function}


def supports_calls(arguments: type[BaseModel]) -> bool:
    """Whether LlamaIndex can call a tool with these arguments. It does not find the fields of a recursive class."""
    return "$ref" not in arguments.model_json_schema()


def as_choice(choice: Any, *, required: bool) -> str:
    """Convert a tool choice to the core's form: "auto", "any", "none" or the name of a tool.

    Args:
        choice: A choice in any form that `adafuse_core.chat.openai` accepts; None means "auto".
        required: Whether a call is required.

    Raises:
        ConfigError: The form of the choice is unknown, or a call is both required and forbidden.
    """
    name = openai.tool_choice(choice) or "auto"
    if required and name == "none":
        raise ConfigError("got tool_required=True with tool_choice='none'", hint="give one of them")
    return "any" if required and name == "auto" else name


def _as_tool(given: Any) -> BaseTool:
    if isinstance(given, BaseTool):
        return given
    if not callable(given) or isinstance(given, type):
        raise ConfigError(f"got {given!r} as a tool, expected a function or a tool of LlamaIndex")
    if not hasattr(given, "__name__"):  # an object with `__call__`, or a `functools.partial`
        raise ConfigError(
            f"got {given!r} as a tool, which has no name of its own", hint="write a function that calls it"
        )
    return FunctionTool.from_defaults(given)
