"""Call options for tools and answer formats, converted from the forms of LangChain and OpenAI to `Ensemble.stream`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adafuse_core.chat import openai
from adafuse_core.chat.tools import CHOICES
from adafuse_core.checks import expect, several
from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain.schemas import function_tool

TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "grammar")


def stream_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the options of a call to arguments of `Ensemble.stream`. Options without a value are left out.

    Raises:
        ConfigError: The form of an option is unknown, or `tool_choice` names an unknown tool.
    """
    tools = as_tools(options.get("tools") or ())
    choice = as_choice(options.get("tool_choice"), tools)
    parallel, grammar = options.get("parallel_tool_calls"), openai.response_grammar(options.get("response_format"))
    expect(isinstance(parallel, bool | None), "parallel_tool_calls", parallel, "True, False or None")
    if grammar is not None and options.get("grammar") is not None:
        raise ConfigError("got both response_format and grammar", hint="give one of them")
    arguments = {
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": parallel if tools else None,
        "grammar": options.get("grammar") if grammar is None else grammar,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def as_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Convert tools to OpenAI's form.

    Args:
        tools: Functions, LangChain tools, pydantic classes, typed dicts, or dicts in any form that LangChain accepts.
        strict: Whether all properties are required, additional properties are forbidden, and a part of a schema that
            can't be enforced is an error. Otherwise the log names such parts.

    Raises:
        ConfigError: A tool is not a function, for example a tool that only a provider can run.
    """
    return [function_tool(tool, strict=strict) for tool in several("tools", tools, "write [tool]")]


def as_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Convert a tool choice to the core's form: "auto", "any", "none" or the name of a tool; None for no choice.

    Args:
        choice: A choice in the core's form, "required", a bool, or a dict in the form of OpenAI or Anthropic.
        tools: The tools of the call in OpenAI's form.

    Raises:
        ConfigError: There is no tool of that name, or a call is required but there are no tools.
    """
    name = openai.tool_choice(choice)
    if name is None:
        return None
    names = [tool["function"]["name"] for tool in tools]
    if name not in (*CHOICES, *names):
        raise ConfigError(
            f"got tool_choice={choice!r}, but there is no tool of that name",
            hint=f"the tools are {', '.join(names) or 'none'}; or choose 'auto', 'any' or 'none'",
        )
    if not names and name not in ("auto", "none"):
        raise ConfigError(f"got tool_choice={choice!r} without tools", hint="give tools")
    return name if names else None
