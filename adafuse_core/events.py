"""The events of `Ensemble.stream`: pieces of the answer, every round, and the end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.rounds import LibraryText, Round, Usage


class AsDict:
    """Base class of all events."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values, and the `type` of the event, such as `"text_delta"`."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"type": name, **{key: _plain(value) for key, value in vars(self).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Round | Usage):
        return value.to_dict()
    return dataclasses.asdict(value) if isinstance(value, ToolCall | InvalidToolCall) else value


@dataclass(frozen=True, kw_only=True)
class TextDelta(AsDict):
    """New text of the answer. All deltas joined are the whole text."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ReasoningDelta(AsDict):
    """New text of the thought at the beginning of an answer, without its tags."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta(AsDict):
    """A piece of a tool call.

    Args:
        index: Index of the call in this answer, from 0.
        id: ID of the call; None after the first piece.
        name: Name of the tool; None after the first piece.
        arguments: New JSON text of the arguments.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ToolCallDone(AsDict):
    """A tool call is complete, or was cut off at the end of the answer.

    Args:
        index: Index of the call in this answer, from 0.
        call: The call.
    """

    index: int
    call: ToolCall | InvalidToolCall


@dataclass(frozen=True, kw_only=True)
class RoundDone(AsDict):
    """A round was committed. Text that could begin a stop string may follow in a later `TextDelta`."""

    round: Round


@dataclass(frozen=True, kw_only=True)
class MemberDropped(AsDict):
    """A member failed, and the answer goes on without it (`on_member_failure="drop"`).

    Args:
        member: Name of the member.
        error: Why it failed.
    """

    member: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Finished(AsDict):
    """The last event.

    Args:
        reason: `"stop"` (the members ended the answer, or a stop string was found), `"tool_calls"` (the answer calls
            tools) or `"length"` (a token budget or context window is full).
        stop: The stop string that was found, if any.
        usage: Tokens of prompt and answer per member.
        library_text: Texts that AdaFuse wrote in the members' place, in the order of the answer.
        dropped_members: Members that failed, and without which the answer went on.
    """

    reason: str
    stop: str | None
    usage: Usage
    library_text: tuple[LibraryText, ...] = ()
    dropped_members: tuple[MemberDropped, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values; `library_text` and `dropped_members` are left out if they are empty."""
        values = super().to_dict()
        del values["library_text"], values["dropped_members"]
        return {**values, **self.incidents()}

    def incidents(self) -> dict[str, Any]:
        """`library_text` and `dropped_members` as plain JSON values, without those that are empty."""
        dropped = [{"member": each.member, "error": each.error} for each in self.dropped_members]
        return {**library_dict(self.library_text), **({"dropped_members": dropped} if dropped else {})}


def library_dict(texts: Sequence[LibraryText]) -> dict[str, Any]:
    """`{"library_text": [...]}` as plain JSON values; an empty dict without texts."""
    return {"library_text": [text.to_dict() for text in texts]} if texts else {}


Event = TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone | RoundDone | MemberDropped | Finished
