"""Tool calls, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """An assistant's request to run a tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class InvalidToolCall:
    """A tool call that can't be run.

    Args:
        name: Name of the tool, as far as it was written.
        arguments: Text of the arguments, as far as it was written.
        id: Id of the call.
        error: What is wrong with the call.
    """

    name: str | None
    arguments: str
    id: str | None
    error: str
