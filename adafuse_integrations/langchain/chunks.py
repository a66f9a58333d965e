"""What the core's events look like to LangChain's LLMs: chunks of text whose `generation_info` carries the trace.

Chunks are made to be added up, as LangChain does: the sum has the whole text, the whole trace and one
finish reason.
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
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
    library_dict,
)
from adafuse_integrations.common.trace import Trace, TraceLevel
from adafuse_integrations.langchain.trace import tokens, usage


def chunks(events: Iterable[Event], *, trace: TraceLevel, logprobs: bool = False) -> Iterator[GenerationChunk]:
    """One chunk for each piece of text, with the trace of the rounds since the last, and one for the end.

    The last chunk's `generation_info` has `finish_reason`, `stop` (the stop string that was hit, or None)
    and `usage`, and as `["adafuse"]["library_text"]` what AdaFuse wrote in the members' place, if anything. A thought
    before the answer is in `generation_info["reasoning"]`.

    Args:
        events: Of one answer.
        trace: What to tell of the rounds.
        logprobs: Whether log-probabilities were asked for.
    """
    text, info, told = "", dict[str, Any](), Trace(trace, logprobs=logprobs)
    for event in events:
        match event:
            case TextDelta():
                text += event.text
            case ReasoningDelta():
                info["reasoning"] = info.get("reasoning", "") + event.text
            case RoundDone():
                told.add(event.round)
                if text or "reasoning" in info:
                    yield GenerationChunk(text=text, generation_info={**info, "adafuse": told.news()})
                    text, info = "", {}
            case Finished():
                ending = {"finish_reason": event.reason, "stop": event.stop, "usage": tokens(event.usage)}
                adafuse = told.news() | library_dict(event.library_text)
                yield GenerationChunk(text=text, generation_info={**info, "adafuse": adafuse, **ending})
            case ToolCallDelta() | ToolCallDone():
                raise AssertionError(f"an LLM is given no tools, but called one: {event}")
            case _:
                assert_never(event)


def folded(pieces: Sequence[GenerationChunk]) -> Generation:
    """All chunks of an answer as one generation."""
    whole = reduce(add, pieces)
    return Generation(text=whole.text, generation_info=whole.generation_info)


def result(answers: Sequence[Generation], model_name: str) -> LLMResult:
    """Answers to several prompts; token counts are those of the first member."""
    firsts = [usage((answer.generation_info or {})["usage"]).first() for answer in answers]
    read, written = sum(first[1] for first in firsts), sum(first[2] for first in firsts)
    total = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return LLMResult(
        generations=[[answer] for answer in answers],
        llm_output={"model_name": model_name, "token_usage": total},
    )
