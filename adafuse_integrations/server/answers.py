"""The parts of an answer that both formats share: what a round adds to it, token counts, and the rounds themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from adafuse_core.events import Event, Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta
from adafuse_core.rounds import Round


class Part:
    """A part of one answer: its text, thought, tool calls and rounds, from the events so far.

    Attributes:
        finished: The last event, once the answer is complete.
    """

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls: dict[int, dict[str, Any]] = {}
        self.rounds: list[Round] = []
        self.finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Add an event."""
        match event:
            case TextDelta():
                self.text += event.text
            case ReasoningDelta():
                self.reasoning += event.text
            case ToolCallDelta():
                self._add_call(event)
            case RoundDone():
                self.rounds.append(event.round)
            case Finished():
                self.finished = event
            case _:  # a call is complete with its deltas
                pass

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing that a client sees."""
        return not (self.text or self.reasoning or self.calls)

    @property
    def has_words(self) -> bool:
        """Whether a round committed text, even if it is held back."""
        return any(played.span.text for played in self.rounds)

    def message(self) -> dict[str, Any]:
        """The fields of a message, without those that are empty. Only the first piece of a call has its name."""
        fields: dict[str, Any] = {}
        if self.text:
            fields["content"] = self.text
        if self.reasoning:
            fields["reasoning_content"] = self.reasoning
        if self.calls:
            fields["tool_calls"] = list(self.calls.values())
        return fields

    def _add_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.setdefault(delta.index, {"index": delta.index, "function": {"arguments": ""}})
        if delta.id is not None:
            call |= {"id": delta.id, "type": "function"}
        if delta.name is not None:
            call["function"] = {"name": delta.name, **call["function"]}
        call["function"]["arguments"] += delta.arguments


def usage(finished: Sequence[Finished], choices: int) -> dict[str, Any]:
    """Token counts of a response, in tokens of the first member. A prompt counts once, however many answers it has.

    Args:
        finished: The ends of all answers, those of one prompt together.
        choices: Number of answers to each prompt.
    """
    firsts = [end.usage.first() for end in finished]
    prompt = sum(count for _, count, _ in firsts[::choices])
    completion = sum(count for _, _, count in firsts)
    cached = sum(end.usage.cached_tokens.get(end.usage.first()[0], 0) for end in finished[::choices])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_details(finished: Finished) -> dict[str, Any]:
    """What AdaFuse reports at the end of an answer: token counts, stop string, text of the library, failed members."""
    return {"usage": finished.usage.to_dict(), "stop": finished.stop, **finished.incidents()}


def answer_details(part: Part, *, with_rounds: bool) -> dict[str, Any]:
    """What AdaFuse adds to a whole answer: its rounds, if asked for, and what it reports at the end."""
    assert part.finished is not None, "an answer ends with a Finished event"
    rounds = {"rounds": rounds_dict(part.rounds)} if with_rounds else {}
    return {**rounds, **finish_details(part.finished)}


def rounds_dict(rounds: Iterable[Round]) -> list[dict[str, Any]]:
    """Rounds as plain JSON values; numbers that JSON lacks are None."""
    return [_finite(played.to_dict()) for played in rounds]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
