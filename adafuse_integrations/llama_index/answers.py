"""A core stream as chunks of an answer, ready to become completion or chat responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.rounds import Round


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer.

    Args:
        text: The answer so far.
        delta: What is new in it.
        raw: JSON values. Of the last chunk: usage, finish reason and the whole trace; before: the round just played.
    """

    text: str
    delta: str
    raw: dict[str, Any]

    def as_completion(self) -> CompletionResponse:
        """As a completion endpoint returns it."""
        return CompletionResponse(text=self.text, delta=self.delta, raw=self.raw)

    def as_chat(self) -> ChatResponse:
        """As a chat endpoint returns it. Nothing but the text goes into the message: memory keeps it."""
        message = ChatMessage(role=MessageRole.ASSISTANT, content=self.text)
        return ChatResponse(message=message, delta=self.delta, raw=self.raw)


def chunks(events: Iterable[Event], on_round: Callable[[int, Round], None]) -> Iterator[Chunk]:
    """The answer chunk by chunk; the last one, with the usage, comes even if there is no text.

    Args:
        events: Of one generation.
        on_round: Called with number and content of each round before its text is yielded.
    """
    text = delta = ""
    rounds: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, TextDelta):
            text, delta = text + event.text, delta + event.text
        elif isinstance(event, RoundDone):
            on_round(len(rounds), event.round)
            rounds.append(dataclasses.asdict(event.round))
            if delta:
                yield Chunk(text=text, delta=delta, raw={"round": rounds[-1]})
                delta = ""
        else:
            yield Chunk(text=text, delta=delta, raw={**_outcome(event), "rounds": rounds})


def is_last(response: CompletionResponse | ChatResponse) -> bool:
    """Whether a response ends its answer."""
    return isinstance(response.raw, dict) and "finish_reason" in response.raw


def _outcome(finished: Finished) -> dict[str, Any]:
    """How the answer ended and what it took. `usage` is in tokens of the first member, as the token budget is."""
    usage = finished.usage
    by_member = {
        name: _counts(usage.prompt_tokens[name], usage.completion_tokens[name]) for name in usage.prompt_tokens
    }
    return {
        "usage": next(iter(by_member.values())),
        "usage_by_member": by_member,
        "finish_reason": finished.reason,
        "stop": finished.stop,
    }


def _counts(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
