"""A core stream as chunks of an answer, ready to become completion or chat responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, assert_never

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
)

from adafuse_core.events import (
    Event,
    Finished,
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
    library_dict,
)
from adafuse_core.rounds import Round
from adafuse_integrations.common.trace import Trace, TraceLevel
from adafuse_integrations.llama_index.calls import Call


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of an answer.

    Args:
        text: The answer so far.
        delta: What is new in it.
        thinking: What was thought before it so far.
        thinking_delta: What is new in that.
        calls: The tool calls so far; the last may be unfinished.
        raw: JSON values. Of the last chunk: usage, finish reason and the whole trace; before: the trace since.
    """

    text: str
    delta: str
    thinking: str
    thinking_delta: str
    calls: tuple[Call, ...]
    raw: dict[str, Any]

    def as_completion(self) -> CompletionResponse:
        """As a completion endpoint returns it."""
        return CompletionResponse(text=self.text, delta=self.delta, raw=self.raw, additional_kwargs=self._thought())

    def as_chat(self) -> ChatResponse:
        """As a chat endpoint returns it.

        The message holds what was thought, said and called and nothing else: memory keeps it. Calls stand in it
        twice, as blocks for agents and in `additional_kwargs` for the programs that stream objects, which look nowhere
        else.
        """
        blocks: list[ContentBlock] = [ThinkingBlock(content=self.thinking)] if self.thinking else []
        if self.text or not self.calls:
            blocks.append(TextBlock(text=self.text))
        blocks += [call.as_block() for call in self.calls]
        kwargs = {"tool_calls": [call.as_dict() for call in self.calls]} if self.calls else {}
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kwargs)
        return ChatResponse(message=message, delta=self.delta, raw=self.raw, additional_kwargs=self._thought())

    def _thought(self) -> dict[str, Any]:
        return {"thinking_delta": self.thinking_delta} if self.thinking_delta else {}


def chunks(
    events: Iterable[Event],
    on_round: Callable[[int, Round], None],
    *,
    trace: TraceLevel,
    logprobs: bool = False,
) -> Iterator[Chunk]:
    """The answer chunk by chunk; the last one, with the usage, comes even if there is no text.

    Args:
        events: Of one generation.
        on_round: Called with number and content of each round before its text is yielded.
        trace: What `raw` tells of the rounds.
        logprobs: Whether log-probabilities were asked for.
    """
    answer = _Answer()
    numbers = count()
    told = Trace(trace, logprobs=logprobs)
    for event in events:
        match event:
            case RoundDone():
                on_round(next(numbers), event.round)
                told.add(event.round)
                if answer.has_news:
                    yield answer.chunk(_since(told))
            case Finished():
                yield answer.chunk(_outcome(event) | told.whole())
            case _:
                answer.take(event)


@dataclass
class _Answer:
    """What was said so far, and what of it is new since the last chunk."""

    text: str = ""
    delta: str = ""
    thinking: str = ""
    thinking_delta: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    has_news: bool = False

    def take(self, event: TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone) -> None:
        self.has_news = True
        match event:
            case TextDelta():
                self.text += event.text
                self.delta += event.text
            case ReasoningDelta():
                self.thinking += event.text
                self.thinking_delta += event.text
            case ToolCallDelta():
                begun = self.calls.get(event.index) or Call(id=event.id or "", name=event.name or "")
                self.calls[event.index] = begun.extended(event.arguments)
            case ToolCallDone():
                self.calls[event.index] = Call.done(event.call)
            case _:
                assert_never(event)

    def chunk(self, raw: dict[str, Any]) -> Chunk:
        made = Chunk(
            text=self.text,
            delta=self.delta,
            thinking=self.thinking,
            thinking_delta=self.thinking_delta,
            calls=tuple(self.calls.values()),
            raw=raw,
        )
        self.delta = self.thinking_delta = ""
        self.has_news = False
        return made


def _since(told: Trace) -> dict[str, Any]:
    """The trace of a chunk that is not the last: the words since the one before, or the round just played."""
    new = told.news()
    if "rounds" in new:
        return {"round": new["rounds"][-1]}
    return {**new, "members": told.whole().get("members", [])} if new else {}


def _outcome(finished: Finished) -> dict[str, Any]:
    """How the answer ended and what it took. `usage` is in tokens of the first member, as the token budget is."""
    usage = finished.usage
    by_member = {
        name: _counts(usage.prompt_tokens[name], usage.completion_tokens[name]) for name in usage.prompt_tokens
    }
    _, read, written = usage.first()
    return {
        "usage": _counts(read, written),
        "usage_by_member": by_member,
        "finish_reason": finished.reason,
        "stop": finished.stop,
        **library_dict(finished.library_text),
    }


def _counts(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
