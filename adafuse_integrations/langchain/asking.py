"""What a call asks for beside its messages: tools, the choice among them, and the form of the answer.

From all forms that LangChain and OpenAI know to the ones of `Ensemble.stream`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adafuse_core.chat import openai
from adafuse_core.chat.tools import CHOICES
from adafuse_core.checks import several
from adafuse_core.errors import ConfigError
from adafuse_integrations.langchain.schemas import function_tool

OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "grammar")  # of a call


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Ensemble.stream` by the options of a call; what was not asked for is left out.

    Raises:
        ConfigError: An option has a form that is not known, or names a tool that is not there.
    """
    tools = as_tools(options.get("tools") or ())
    choice = as_choice(options.get("tool_choice"), tools)
    parallel, grammar = options.get("parallel_tool_calls"), openai.response_grammar(options.get("response_format"))
    if not isinstance(parallel, bool | None):
        raise ConfigError(f"got parallel_tool_calls={parallel!r}, expected True, False or None")
    if grammar is not None and options.get("grammar") is not None:
        raise ConfigError("got both response_format and grammar", hint="they mean the same: give one of them")
    given = {
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": parallel if tools else None,
        "grammar": options.get("grammar") if grammar is None else grammar,
    }
    return {name: value for name, value in given.items() if value is not None}


def as_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in OpenAI's form.

    Args:
        tools: Functions, LangChain tools, pydantic classes, typed dicts, or dicts in any form LangChain knows.
        strict: Whether every property is required, no other is allowed, and what can't be enforced is an error.
            Otherwise calls obey what can be enforced of the schema, and the log names the rest.

    Raises:
        ConfigError: One is no function, such as a tool that only a provider could run.
    """
    given = several("tools", tools, "write [tool]")
    return [function_tool(tool, strict=strict) for tool in given]


def as_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """What must be called: "auto", "any", "none" or a tool's name; None if nothing was said.

    Args:
        choice: The same, "required", a bool, or a dict in the form of OpenAI or Anthropic.
        tools: In OpenAI's form.
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
