"""What `Ensemble.stream` yields, in order: text as soon as it is safe, each round, then the end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.rounds import LibraryText, Round, Usage


class AsDict:
    """What all events can do."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all fields; `type` names the event, such as `"text_delta"`."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"type": name, **{key: _plain(value) for key, value in vars(self).items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Round | Usage):
        return value.to_dict()
    return dataclasses.asdict(value) if isinstance(value, ToolCall | InvalidToolCall) else value


@dataclass(frozen=True, kw_only=True)
class TextDelta(AsDict):
    """New text of the answer; the deltas joined are the whole answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ReasoningDelta(AsDict):
    """New text of the thought with which an answer began; the tags around it are left out."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ToolCallDelta(AsDict):
    """A piece of a tool call.

    Args:
        index: Number of the call in this answer, from 0.
        id: Of the call, in its first piece.
        name: Of the tool, in the call's first piece.
        arguments: New JSON text of the arguments.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, kw_only=True)
class ToolCallDone(AsDict):
    """A tool call is complete, or the answer ended inside it."""

    index: int
    call: ToolCall | InvalidToolCall


@dataclass(frozen=True, kw_only=True)
class RoundDone(AsDict):
    """A round was decided; its text may still be held back by a stop string that began in it."""

    round: Round


@dataclass(frozen=True, kw_only=True)
class Finished(AsDict):
    """The last event.

    Args:
        reason: `"stop"` (the members ended the answer, or a stop string was hit), `"tool_calls"` (the answer called
            tools) or `"length"`.
        stop: The stop string that was hit, if one was.
        usage: Tokens of prompt and answer per member.
        library_text: What AdaFuse wrote in the members' place, in the order of the answer.
    """

    reason: str
    stop: str | None
    usage: Usage
    library_text: tuple[LibraryText, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As of all events; `library_text` only if there is some."""
        told = super().to_dict()
        del told["library_text"]
        return {**told, **library_dict(self.library_text)}


def library_dict(texts: Sequence[LibraryText]) -> dict[str, Any]:
    """What AdaFuse wrote in the members' place as plain JSON under `library_text`; an empty dict without it."""
    return {"library_text": [text.to_dict() for text in texts]} if texts else {}


Event = TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone | RoundDone | Finished
