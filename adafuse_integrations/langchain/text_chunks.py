"""The core's events as text chunks of a LangChain LLM. The `generation_info` of a chunk carries its trace.

LangChain adds chunks with `+`. The sum has the whole text, the whole trace and one finish reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any, assert_never

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

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
from adafuse_integrations.langchain.usage import usage_dict, usage_from_dict


def text_chunks(events: Iterable[Event], *, trace: TraceLevel, logprobs: bool = False) -> Iterator[GenerationChunk]:
    """Yield a chunk for each piece of text, with the trace of the rounds since the previous chunk, and a last chunk.

    The `generation_info` of the last chunk has `finish_reason`, `stop` (the stop string that ended the answer, or
    None), `usage`, and in `["adafuse"]`, if there are any, the `library_text` that AdaFuse wrote instead of the
    members, and the `dropped_members` that failed. Reasoning before the answer is in `generation_info["reasoning"]`.

    Args:
        events: The events of one answer.
        trace: What to report of each round.
        logprobs: Whether the call asked for log-probabilities.
    """
    text, info, rounds = "", dict[str, Any](), TraceBuilder(trace, logprobs=logprobs)
    for event in events:
        match event:
            case TextDelta():
                text += event.text
            case ReasoningDelta():
                info["reasoning"] = info.get("reasoning", "") + event.text
            case RoundDone():
                rounds.add(event.round)
                if text or "reasoning" in info:
                    yield GenerationChunk(text=text, generation_info={**info, "adafuse": rounds.take_new()})
                    text, info = "", {}
            case Finished():
                ending = {"finish_reason": event.reason, "stop": event.stop, "usage": usage_dict(event.usage)}
                adafuse = rounds.take_new() | event.incidents()
                yield GenerationChunk(text=text, generation_info={**info, "adafuse": adafuse, **ending})
            case MemberDropped():
                pass  # the last chunk lists them
            case ToolCallDelta() | ToolCallDone():
                raise AssertionError(f"an LLM has no tools, but called one: {event}")
            case _:
                assert_never(event)


def merge_chunks(chunks: Sequence[GenerationChunk]) -> Generation:
    """Merge all chunks of an answer into one generation."""
    merged = reduce(add, chunks)
    return Generation(text=merged.text, generation_info=merged.generation_info)


def llm_result(answers: Sequence[Generation], model_name: str) -> LLMResult:
    """The result of a call with several prompts. Its token counts are those of the first member."""
    counts = [usage_from_dict((answer.generation_info or {})["usage"]).first() for answer in answers]
    prompt, completion = sum(count[1] for count in counts), sum(count[2] for count in counts)
    total = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return LLMResult(
        generations=[[answer] for answer in answers],
        llm_output={"model_name": model_name, "token_usage": total},
    )
