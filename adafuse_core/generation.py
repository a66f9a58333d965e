"""A whole answer, collected from the events of a stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.events import Event, Finished, MemberDropped, ReasoningDelta, RoundDone, TextDelta, ToolCallDone
from adafuse_core.rounds import LibraryText, Round, Usage
from adafuse_core.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A whole answer.

    Args:
        text: Exact text of the answer, without thoughts and tool calls.
        reason: `"stop"`, `"tool_calls"` or `"length"` (see `Finished`); in the `partial` of an error `"cancelled"` or
            `"error"`.
        stop: The stop string that ended the answer, if any.
        usage: Tokens of prompt and answer per member.
        rounds: Every decision of the ensemble.
        reasoning: The thought at the beginning of the answer, between `<think>` and `</think>`.
        tool_calls: Valid tool calls of the answer.
        invalid_tool_calls: Tool calls that were cut off by the token budget, a context window or an error.
        library_text: Texts that AdaFuse wrote in the members' place, because a token budget or context window was full.
        dropped_members: Members that failed, and without which the answer went on (`on_member_failure="drop"`).
    """

    text: str
    reason: str
    stop: str | None
    usage: Usage
    rounds: tuple[Round, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    library_text: tuple[LibraryText, ...] = ()
    dropped_members: tuple[MemberDropped, ...] = ()

    @property
    def trace(self) -> Trace:
        """Every decision of the ensemble, for notebooks, files and JSON."""
        return Trace.of(self.rounds, tuple(self.usage.prompt_tokens))


def collect(events: Iterable[Event]) -> Generation:
    """Collect the events of a stream into the whole answer."""
    seen = list(events)
    (finished,) = (event for event in seen if isinstance(event, Finished))
    calls = [event.call for event in seen if isinstance(event, ToolCallDone)]
    return Generation(
        text="".join(event.text for event in seen if isinstance(event, TextDelta)),
        reasoning="".join(event.text for event in seen if isinstance(event, ReasoningDelta)),
        tool_calls=tuple(call for call in calls if isinstance(call, ToolCall)),
        invalid_tool_calls=tuple(call for call in calls if isinstance(call, InvalidToolCall)),
        reason=finished.reason,
        stop=finished.stop,
        usage=finished.usage,
        library_text=finished.library_text,
        dropped_members=finished.dropped_members,
        rounds=tuple(event.round for event in seen if isinstance(event, RoundDone)),
    )
