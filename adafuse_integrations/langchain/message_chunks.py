"""What the core's events look like to LangChain's chat models: message chunks whose metadata carries the trace.

A chunk holds text, reasoning or a piece of a tool call, never two of them, because LangChain tells the blocks of
a message apart by their place in the chunk.
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
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
    library_dict,
)
from adafuse_integrations.common.trace import Trace, TraceLevel
from adafuse_integrations.langchain.trace import tokens

_PROVIDER = {"model_provider": "adafuse"}
_SPOILERS = ("", "]", "}", '"]', '"}', '""]', '""}')  # what makes a text no JSON object, however much of it is read


def message_chunks(
    events: Iterable[Event], model_name: str, *, trace: TraceLevel, logprobs: bool = False
) -> Iterator[ChatGenerationChunk]:
    """A chunk for each piece of an answer, with the trace of the rounds since the last, and one for the end.

    The last chunk has the usage (of the first member), `finish_reason`, `stop` (the stop string that was hit, or
    None), `model_name`, and in `["adafuse"]` the `usage` of each member, and as `library_text` what AdaFuse wrote in
    the members' place, if anything.

    Args:
        events: Of one answer.
        model_name: Of those who wrote it.
        trace: What to tell of the rounds.
        logprobs: Whether log-probabilities were asked for.
    """
    pieces, told = _Pieces(), Trace(trace, logprobs=logprobs)
    for event in events:
        match event:
            case RoundDone():
                told.add(event.round)
                yield from _with_trace(pieces.taken(), told)
            case Finished():
                yield from _with_trace(pieces.taken(), told)
                yield _last(event, told.news(), pieces.invalid, model_name)
            case _:
                pieces.add(event)


def whole(chunks: Sequence[ChatGenerationChunk]) -> ChatGeneration:
    """All chunks of an answer as one generation; calls that went wrong with what is wrong with them."""
    merged = merge_chat_generation_chunks(list(chunks))
    assert merged is not None
    message, info = message_chunk_to_message(merged.message), merged.generation_info or {}
    if invalid := info["adafuse"].get("invalid_tool_calls"):
        message = message.model_copy(update={"invalid_tool_calls": [invalid_tool_call(**call) for call in invalid]})
    return ChatGeneration(message=message, generation_info=info)


class _Pieces:
    """What came since the last chunk, neighbours of one kind joined.

    Attributes:
        invalid: The calls that went wrong, over the whole answer.
    """

    def __init__(self) -> None:
        self.invalid: list[dict[str, Any]] = []
        self._waiting: list[AIMessageChunk] = []
        self._kind: object = None  # of the content block that is being written
        self._blocks = 0  # text and reasoning begun, and calls
        self._places: dict[int, int] = {}  # of calls among the blocks
        self._written: dict[int, str] = {}  # arguments of the calls so far

    def add(self, event: TextDelta | ReasoningDelta | ToolCallDelta | ToolCallDone) -> None:
        """Take a piece of text, reasoning or a call."""
        match event:
            case TextDelta():
                self._push("text", AIMessageChunk(content=event.text))
            case ReasoningDelta():
                self._push("reasoning", AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text}))
            case ToolCallDelta():
                self._push_call(event.index, event.arguments, event.id, event.name)
            case ToolCallDone():
                if isinstance(event.call, InvalidToolCall):  # the pieces of a right one are all there
                    self._spoil(event.index, event.call)
            case _:
                assert_never(event)

    def taken(self) -> list[AIMessageChunk]:
        """All pieces; none are kept."""
        pieces, self._waiting = self._waiting, []
        return pieces

    def _push(self, kind: object, piece: AIMessageChunk) -> None:
        if kind != self._kind:
            self._kind, self._blocks = kind, self._blocks + 1
        elif self._waiting and not _names_a_call(self._waiting[-1]):
            self._waiting[-1] += piece
            return
        self._waiting.append(piece)

    def _push_call(self, index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> None:
        place = self._places.setdefault(index, self._blocks)
        self._written[index] = self._written.get(index, "") + arguments
        call = tool_call_chunk(name=name, args=arguments, id=call_id, index=place)
        self._push(("call", index), AIMessageChunk(content="", tool_call_chunks=[call]))

    def _spoil(self, index: int, call: InvalidToolCall) -> None:
        """Keep a call that went wrong from being taken for one: LangChain reads unfinished JSON as if it were whole."""
        self.invalid.append({"name": call.name, "args": call.arguments, "id": call.id, "error": call.error})
        begun = index in self._written
        rest = "" if begun else call.arguments
        text = self._written.get(index, "") + rest
        rest += next(spoiler for spoiler in _SPOILERS if not _reads_as_object(text + spoiler))
        self._push_call(index, rest, *(() if begun else (call.id, call.name)))


def _names_a_call(piece: AIMessageChunk) -> bool:
    return any(call["name"] for call in piece.tool_call_chunks)


def _with_trace(pieces: Sequence[AIMessageChunk], told: Trace) -> Iterator[ChatGenerationChunk]:
    """The pieces as chunks; the first takes along what is new of the trace."""
    for piece in pieces:
        piece.response_metadata = dict(_PROVIDER)
        yield ChatGenerationChunk(message=piece, generation_info={"adafuse": told.news()})


def _last(
    finished: Finished, told: dict[str, Any], invalid: list[dict[str, Any]], model_name: str
) -> ChatGenerationChunk:
    counted_by, read, written = finished.usage.first()
    adafuse: dict[str, Any] = {**told, "usage": tokens(finished.usage), "counted_by": counted_by}
    adafuse |= library_dict(finished.library_text)
    if invalid:
        adafuse["invalid_tool_calls"] = invalid
    message = AIMessageChunk(
        content="",
        chunk_position="last",
        response_metadata=dict(_PROVIDER),
        usage_metadata=UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written),
    )
    ending = {"finish_reason": finished.reason, "stop": finished.stop, "model_name": model_name}
    return ChatGenerationChunk(message=message, generation_info={"adafuse": adafuse, **ending})


def _reads_as_object(text: str) -> bool:
    """Whether LangChain would take a text for the arguments of a call, completing what is missing."""
    try:
        return not text or isinstance(parse_partial_json(text), dict)
    except ValueError:
        return False
