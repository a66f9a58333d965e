"""Tool calls as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of a tool.

    Args:
        name: Name of the tool.
        arguments: Arguments by name, as plain JSON values.
        id: ID of the call.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None

    def repeats(self, other: ToolCall) -> bool:
        """Whether both calls have the same tool and equal arguments (as JSON); IDs are ignored."""
        return self.name == other.name and _same_json(self.arguments, other.arguments)


@dataclass(frozen=True, kw_only=True)
class InvalidToolCall:
    """A tool call that can't be run.

    Args:
        name: Name of the tool; None if the members did not write it completely.
        arguments: Text of the arguments, possibly incomplete.
        id: ID of the call.
        error: Why the call can't be run.
    """

    name: str | None
    arguments: str
    id: str | None
    error: str


def _same_json(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)  # in Python, True equals 1
