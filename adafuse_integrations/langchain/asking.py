"""What a call asks for beside its messages: tools, the choice among them, and the form of the answer.

From all forms that LangChain and OpenAI know to the ones of `Ensemble.stream`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from adafuse_core.chat.grammar import Grammar
from adafuse_core.errors import ConfigError

OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "grammar")  # of a call

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_CHOICES = ("auto", "any", "required", "none")


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `Ensemble.stream` by the options of a call; what was not asked for is left out.

    Raises:
        ConfigError: An option has a form that is not known, or names a tool that is not there.
    """
    tools = as_tools(options.get("tools") or ())
    choice = as_choice(options.get("tool_choice"), tools)
    parallel, grammar = options.get("parallel_tool_calls"), as_grammar(options.get("response_format"))
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
    return [_function(convert_to_openai_tool(_opened(tool), strict=strict)) for tool in tools]


def as_choice(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """What must be called: "auto", "any", "none" or a tool's name; None if nothing was said.

    Args:
        choice: The same, "required", a bool, or a dict in the form of OpenAI or Anthropic.
        tools: In OpenAI's form.
    """
    name = _named(choice)
    if name is None:
        return None
    names = [tool["function"]["name"] for tool in tools]
    if name not in (*_CHOICES, *names):
        raise ConfigError(
            f"got tool_choice={choice!r}, but there is no tool of that name",
            hint=f"the tools are {', '.join(names) or 'none'}; or choose 'auto', 'any' or 'none'",
        )
    if not names and name not in ("auto", "none"):
        raise ConfigError(f"got tool_choice={choice!r} without tools", hint="give tools")
    return ("any" if name == "required" else name) if names else None


def as_grammar(response_format: Any) -> Grammar | None:
    """What the text of the answer must obey; None if it is free.

    Args:
        response_format: None, or in OpenAI's form: `{"type": "text"}`, `{"type": "json_object"}` or
            `{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}`. What can't be enforced of a schema
            is named in the log, or is an error with `"strict": True` beside the schema.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    named = response_format.get("json_schema") if kind == "json_schema" else None
    if isinstance(named, Mapping) and isinstance(named.get("schema"), Mapping):
        return Grammar.json_schema(named["schema"], lenient=not named.get("strict"))
    raise ConfigError(
        f"got response_format={response_format!r}, expected a dict of type 'text', 'json_object' or 'json_schema'",
        hint="for a pydantic class, use with_structured_output",
    )


def _opened(tool: Any) -> Any:
    """A tool that is in OpenAI's form already, in a form that is still looked at."""
    function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
    return {"parameters": _NO_PARAMETERS, **function} if isinstance(function, Mapping) else tool


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with what members are told of it."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping) or not function.get("name"):
        raise ConfigError(f"got {tool!r} as a tool, expected a function with a name", hint="members run no tools")
    parameters = function.get("parameters") or _NO_PARAMETERS
    described = {"name": function["name"], "description": function.get("description", ""), "parameters": parameters}
    strict = {"strict": True} if function.get("strict") else {}
    return {"type": "function", "function": {**described, **strict}}


def _named(choice: Any) -> str | None:
    """The choice as one word."""
    if choice is None or choice is False:
        return None
    if choice is True:
        return "any"
    if isinstance(choice, Mapping) and not choice.keys() - {"type", "name", "function"}:
        kind, function = choice.get("type"), choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
        choice = name if kind in ("function", "tool", None) and name else kind
    if not isinstance(choice, str):
        raise ConfigError(f"got tool_choice={choice!r}, expected 'auto', 'any', 'none', or a tool's name")
    return choice
