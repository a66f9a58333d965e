"""The tools of a request: which ones may be called, and how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from adafuse_core.chat.dialects.base import JSON, Arguments
from adafuse_core.chat.grammar import Grammar
from adafuse_core.checks import several
from adafuse_core.errors import ConfigError

CHOICES = ("auto", "any", "required", "none")


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
        checked = tuple(_schema(tool) for tool in several("tools", schemas or (), "write tools=[...]"))
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


def _schema(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        form = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        raise ConfigError(f"got {tool!r} as a tool, expected {form}")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ConfigError(f"the parameters of tool {name!r} are {parameters!r}, expected the JSON schema of an object")
    whole = {"type": "object", "properties": {}, **parameters}
    return {"type": "function", "function": {**function, "parameters": whole}}
