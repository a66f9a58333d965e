"""Tools as LlamaIndex knows them, made of what users give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import BaseTool

from adafuse_core.checks import several
from adafuse_core.errors import ConfigError


def as_tools(tools: Iterable[BaseTool | Callable[..., Any]]) -> list[BaseTool]:
    """Tools of LlamaIndex, made of those that are plain functions.

    Raises:
        ConfigError: One is neither a tool nor a function, or one was given in place of several.
    """
    return [_tool(tool) for tool in several("tools", tools, "write [tool]")]


def _tool(given: Any) -> BaseTool:
    if isinstance(given, BaseTool):
        return given
    if not callable(given) or isinstance(given, type):
        raise ConfigError(f"got {given!r} as a tool, expected a function or a tool of LlamaIndex")
    if not hasattr(given, "__name__"):  # an object with `__call__`, or a `functools.partial`
        raise ConfigError(
            f"got {given!r} as a tool, which has no name of its own", hint="write a function that calls it"
        )
    return FunctionTool.from_defaults(given)
