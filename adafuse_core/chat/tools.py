"""The tools of a request: which ones may be called, and how often."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from adafuse_core.chat.dialects.base import JSON, Arguments
from adafuse_core.chat.grammar import Grammar
from adafuse_core.checks import expect_encodable, several
from adafuse_core.errors import ConfigError

CHOICES = ("auto", "any", "required", "none")
_FUNCTION: Mapping[str, type] = {"name": str, "description": str, "parameters": Mapping, "strict": bool}


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The tools that an answer may call.

    Args:
        schemas: Tools in OpenAI's format, `{"type": "function", "function": {"name", "description", "parameters"}}`.
        forced: Whether the answer must contain a call.
        only: Name of the only tool that may be called, once; None for all tools.
        parallel: Whether an answer may contain several calls.
    """

    schemas: tuple[dict[str, Any], ...]
    forced: bool
    only: str | None
    parallel: bool
    _grammars: dict[Arguments, tuple[Grammar, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_request(cls, schemas: Sequence[Mapping[str, Any]] | None, choice: str, parallel: bool) -> Self | None:
        """Check the tools of a request; None if no tool may be called.

        Raises:
            ConfigError: A tool has no valid schema, or `choice` is not the name of a tool.
        """
        checked = tuple(
            _schema(tool) for tool in several("tools", () if schemas is None else schemas, "write tools=[...]")
        )
        names = [tool["function"]["name"] for tool in checked]
        if len(set(names)) < len(names):
            raise ConfigError(f"got tools of the same name: {names}", hint="rename one of them")
        if choice not in (*CHOICES, *names):
            expected = ", ".join(map(repr, (*CHOICES, *names)))
            raise ConfigError(f"got tool_choice={choice!r}, expected one of {expected}")
        if not names and choice in ("any", "required"):
            raise ConfigError(f"got tool_choice={choice!r} without tools", hint="pass tools")
        if not names or choice == "none":
            return None
        only = None if choice in CHOICES else choice
        tools = cls(schemas=checked, forced=choice != "auto", only=only, parallel=parallel and only is None)
        tools.arguments(JSON)  # refuses unenforceable schemas at once, for every dialect
        return tools

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the callable tools."""
        return tuple(function["name"] for function in self._callable)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """JSON schemas of the arguments, by name of the callable tool."""
        return {function["name"]: function["parameters"] for function in self._callable}

    def arguments(self, syntax: Arguments) -> tuple[Grammar, ...]:
        """Grammars of the arguments, one per callable tool."""
        if syntax not in self._grammars:
            self._grammars[syntax] = tuple(
                syntax.grammar(
                    function["parameters"], lenient=not function.get("strict"), name=f"tool {function['name']!r}"
                )
                for function in self._callable
            )
        return self._grammars[syntax]

    @property
    def _callable(self) -> list[dict[str, Any]]:
        functions = [tool["function"] for tool in self.schemas]
        return [function for function in functions if self.only in (None, function["name"])]


def check_function(function: Mapping[str, Any]) -> None:
    """Refuse parts of a function in OpenAI's format that are unknown or have a wrong type, and text without a form in
    UTF-8.

    Raises:
        ConfigError: See above.
    """
    for key, value in function.items():
        kind = _FUNCTION.get(key)
        if kind is None or not (value is None or isinstance(value, kind)):
            raise ConfigError(
                f"got {key!r}: {value!r} in a tool, expected {', '.join(_FUNCTION)}, with values as in OpenAI's format"
            )
    try:
        written = json.dumps(function, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the tool {function.get('name')!r} is not plain JSON: {error}") from error
    expect_encodable("tool", written)


def _schema(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise ConfigError(f"got {tool!r} as a tool, expected {form}")
    if tool.get("type", "function") != "function":
        raise ConfigError(f"got a tool of type {tool['type']!r}, expected 'function'")
    check_function(function)
    parameters = {} if function.get("parameters") is None else function["parameters"]
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ConfigError(f"the parameters of tool {name!r} are {parameters!r}, expected the JSON schema of an object")
    whole = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {**function, "parameters": whole}}
