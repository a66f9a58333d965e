"""The core's events as message chunks of a LangChain chat model. The metadata of a chunk carries its trace.

A chunk contains either text, reasoning or a piece of a tool call, because LangChain identifies the content blocks of a
message by their position in the chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, assert_never

from langchain_core.messages import AIMessageChunk, message_chunk_to_message
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk
from langchain_core.outputs.chat_generation import merge_chat_generation_chunks
from langchain_core.utils.json import parse_partial_json

from adafuse_core.calls import InvalidToolCall
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
from adafuse_integrations.common.trace import TraceBuilder, TraceLevel
from adafuse_integrations.langchain.usage import usage_dict

_PROVIDER = {"model_provider": "adafuse"}
# Suffixes of unfinished arguments. For any text, at least one of them makes the text unreadable as a JSON object.
_JSON_BREAKERS = ("", "]", "}", '"]', '"}', '""]', '""}')


def message_chunks(
    events: Iterable[Event], model_name: str, *, trace: TraceLevel, logprobs: bool = False
) -> Iterator[ChatGenerationChunk]:
    """Yield the pieces of an answer as chunks, with the trace of the rounds since the previous chunk, and a last chunk.

    The last chunk has the usage of the first member, `finish_reason`, `stop` (the stop string that ended the answer,
    or None), `model_name`, and in `["adafuse"]` the `usage` of each member and, if there are any, the `library_text`
    that AdaFuse wrote instead of the members, and the `dropped_members` that failed.

    Args:
        events: The events of one answer.
        model_name: Names of the members that answer.
        trace: What to report of each round.
        logprobs: Whether the call asked for log-probabilities.
    """
    pieces, rounds = _Pieces(), TraceBuilder(trace, logprobs=logprobs)
    for event in events:
        match event:
            case RoundDone():
                rounds.add(event.round)
                yield from _with_trace(pieces.take(), rounds)
            case MemberDropped():
                pass  # the last chunk lists them
            case Finished():
                yield from _with_trace(pieces.take(), rounds)
                yield _last_chunk(event, rounds.take_new(), pieces.invalid, model_name)
            case _:
                pieces.add(event)


def merge_chunks(chunks: Sequence[ChatGenerationChunk]) -> ChatGeneration:
    """Merge all chunks of an answer into one generation; invalid tool calls keep their error messages."""
    merged = merge_chat_generation_chunks(list(chunks))
    assert merged is not None
    message, info = message_chunk_to_message(merged.message), merged.generation_info or {}
    if invalid := info["adafuse"].get("invalid_tool_calls"):
        message = message.model_copy(update={"invalid_tool_calls": [invalid_tool_call(**call) for call in invalid]})
    return ChatGeneration(message=message, generation_info=info)


class _Pieces:
    """The pieces of an answer that are not yet in a chunk. Adjacent pieces of one kind are joined.

    Attributes:
        invalid: The invalid tool calls of the whole answer.
    """

    def __init__(self) -> None:
        self.invalid: list[dict[str, Any]] = []
        self._waiting: list[AIMessageChunk] = []
        self._kind: object = None  # kind of the current content block
        self._blocks = 0  # number of content blocks so far
        self._positions: dict[int, int] = {}  # tool call -> its position among the content blocks
        self._arguments: dict[int, str] = {}  # tool call -> its arguments so far, as text

    def add(self, event: TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone) -> None:
        """Add a piece of text, reasoning or a tool call."""
        match event:
            case TextDelta():
                self._push("text", AIMessageChunk(content=event.text))
            case ReasoningDelta():
                self._push("reasoning", AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text}))
            case ToolCallDelta():
                self._push_call(event.index, event.arguments, event.id, event.name)
            case ToolCallDone():
                if isinstance(event.call, InvalidToolCall):  # a valid call is complete with its deltas
                    self._invalidate(event.index, event.call)
            case _:
                assert_never(event)

    def take(self) -> list[AIMessageChunk]:
        """Remove and return all pieces."""
        pieces, self._waiting = self._waiting, []
        return pieces

    def _push(self, kind: object, piece: AIMessageChunk) -> None:
        if kind != self._kind:
            self._kind, self._blocks = kind, self._blocks + 1
        elif self._waiting and not _starts_call(self._waiting[-1]):
            self._waiting[-1] += piece
            return
        self._waiting.append(piece)

    def _push_call(self, index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> None:
        position = self._positions.setdefault(index, self._blocks)
        self._arguments[index] = self._arguments.get(index, "") + arguments
        call = tool_call_chunk(name=name, args=arguments, id=call_id, index=position)
        self._push(("call", index), AIMessageChunk(content="", tool_call_chunks=[call]))

    def _invalidate(self, index: int, call: InvalidToolCall) -> None:
        """Make the arguments of an invalid call unreadable: else LangChain completes the JSON and runs the call."""
        self.invalid.append({"name": call.name, "args": call.arguments, "id": call.id, "error": call.error})
        started = index in self._arguments
        rest = "" if started else call.arguments
        text = self._arguments.get(index, "") + rest
        rest += next(breaker for breaker in _JSON_BREAKERS if not _reads_as_object(text + breaker))
        self._push_call(index, rest, *(() if started else (call.id, call.name)))


def _starts_call(piece: AIMessageChunk) -> bool:
    return any(call["name"] for call in piece.tool_call_chunks)


def _with_trace(pieces: Sequence[AIMessageChunk], rounds: TraceBuilder) -> Iterator[ChatGenerationChunk]:
    """The pieces as chunks. The first chunk carries the new part of the trace."""
    for piece in pieces:
        piece.response_metadata = dict(_PROVIDER)
        yield ChatGenerationChunk(message=piece, generation_info={"adafuse": rounds.take_new()})


def _last_chunk(
    finished: Finished, trace: dict[str, Any], invalid: list[dict[str, Any]], model_name: str
) -> ChatGenerationChunk:
    counted_by, prompt, completion = finished.usage.first()
    adafuse: dict[str, Any] = {**trace, "usage": usage_dict(finished.usage), "counted_by": counted_by}
    adafuse |= finished.incidents()
    if invalid:
        adafuse["invalid_tool_calls"] = invalid
    message = AIMessageChunk(
        content="",
        chunk_position="last",
        response_metadata=dict(_PROVIDER),
        usage_metadata=UsageMetadata(
            input_tokens=prompt,
            output_tokens=completion,
            total_tokens=prompt + completion,
            input_token_details={"cache_read": finished.usage.cached_tokens.get(counted_by, 0)},
        ),
    )
    ending = {"finish_reason": finished.reason, "stop": finished.stop, "model_name": model_name}
    return ChatGenerationChunk(message=message, generation_info={"adafuse": adafuse, **ending})


def _reads_as_object(text: str) -> bool:
    """Whether LangChain would read a text as the arguments of a call; it completes unfinished JSON."""
    try:
        return not text or isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False
