"""The core's events as chunks of an answer, which become completion or chat responses."""

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
    MemberDropped,
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
)
from adafuse_core.rounds import Round, Usage
from adafuse_integrations.common.trace import TraceBuilder, TraceLevel
from adafuse_integrations.llama_index.tool_calls import StreamedToolCall


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The state of an answer while it streams.

    Args:
        text: Text so far.
        delta: Text since the previous chunk.
        thinking: Reasoning so far.
        thinking_delta: Reasoning since the previous chunk.
        calls: Tool calls so far. The last call may be incomplete.
        raw: Plain JSON: the trace since the previous chunk; in the last chunk usage, finish reason and the whole trace.
    """

    text: str
    delta: str
    thinking: str
    thinking_delta: str
    calls: tuple[StreamedToolCall, ...]
    raw: dict[str, Any]

    def as_completion(self) -> CompletionResponse:
        """The response of a completion endpoint."""
        return CompletionResponse(
            text=self.text, delta=self.delta, raw=self.raw, additional_kwargs=self._thinking_kwargs()
        )

    def as_chat(self) -> ChatResponse:
        """The response of a chat endpoint.

        The message contains reasoning, text and tool calls only, because chat memory stores the message. Calls appear
        twice: as blocks for agents, and in `additional_kwargs` for programs that stream objects.
        """
        blocks: list[ContentBlock] = [ThinkingBlock(content=self.thinking)] if self.thinking else []
        if self.text or not self.calls:
            blocks.append(TextBlock(text=self.text))
        blocks += [call.as_block() for call in self.calls]
        kwargs = {"tool_calls": [call.as_dict() for call in self.calls]} if self.calls else {}
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kwargs)
        return ChatResponse(message=message, delta=self.delta, raw=self.raw, additional_kwargs=self._thinking_kwargs())

    def _thinking_kwargs(self) -> dict[str, Any]:
        return {"thinking_delta": self.thinking_delta} if self.thinking_delta else {}


def answer_chunks(
    events: Iterable[Event],
    on_round: Callable[[int, Round], None],
    *,
    trace: TraceLevel,
    logprobs: bool = False,
) -> Iterator[Chunk]:
    """Yield an answer chunk by chunk. The last chunk has the usage, and is yielded even if it has no text.

    Args:
        events: The events of one answer.
        on_round: Called with the number and content of each round, before its text is yielded.
        trace: What `raw` reports of each round.
        logprobs: Whether the call asked for log-probabilities.
    """
    answer = _Answer()
    numbers = count()
    rounds = TraceBuilder(trace, logprobs=logprobs)
    for event in events:
        match event:
            case RoundDone():
                on_round(next(numbers), event.round)
                rounds.add(event.round)
                if answer.changed:
                    yield answer.next_chunk(_new_trace(rounds))
            case MemberDropped():
                pass  # the last chunk lists them
            case Finished():
                yield answer.next_chunk(_outcome(event) | rounds.so_far())
            case _:
                answer.add(event)


@dataclass
class _Answer:
    """The answer so far, and its part since the previous chunk."""

    text: str = ""
    delta: str = ""
    thinking: str = ""
    thinking_delta: str = ""
    calls: dict[int, StreamedToolCall] = field(default_factory=dict)
    changed: bool = False

    def add(self, event: TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone) -> None:
        self.changed = True
        match event:
            case TextDelta():
                self.text += event.text
                self.delta += event.text
            case ReasoningDelta():
                self.thinking += event.text
                self.thinking_delta += event.text
            case ToolCallDelta():
                call = self.calls.get(event.index) or StreamedToolCall(id=event.id or "", name=event.name or "")
                self.calls[event.index] = call.extended(event.arguments)
            case ToolCallDone():
                self.calls[event.index] = StreamedToolCall.finished(event.call)
            case _:
                assert_never(event)

    def next_chunk(self, raw: dict[str, Any]) -> Chunk:
        chunk = Chunk(
            text=self.text,
            delta=self.delta,
            thinking=self.thinking,
            thinking_delta=self.thinking_delta,
            calls=tuple(self.calls.values()),
            raw=raw,
        )
        self.delta = self.thinking_delta = ""
        self.changed = False
        return chunk


def _new_trace(rounds: TraceBuilder) -> dict[str, Any]:
    """The trace of any chunk but the last: the words since the previous chunk, or the latest round."""
    new = rounds.take_new()
    if full := new.get("rounds"):
        return {"round": full[-1]}
    return {**new, "members": rounds.members} if new.get("words") else {}


def _outcome(finished: Finished) -> dict[str, Any]:
    """Finish reason and usage of an answer. `usage` counts tokens of the first member, like the token budget."""
    usage = finished.usage
    by_member = {name: _counts(usage, name) for name in usage.prompt_tokens}
    return {
        "usage": by_member[usage.first()[0]],
        "usage_by_member": by_member,
        "finish_reason": finished.reason,
        "stop": finished.stop,
        **finished.incidents(),
    }


def _counts(usage: Usage, name: str) -> dict[str, Any]:
    """The counts of one member, as OpenAI names them; `read_tokens` is our own."""
    prompt, completion = usage.prompt_tokens[name], usage.completion_tokens[name]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens.get(name, 0)},
        "read_tokens": usage.read_tokens.get(name, 0),
    }
