"""What the core's events look like in LangChain: chunks of text whose `generation_info` carries the trace.

Chunks are made to be added up, as LangChain does: the sum has the whole text, the whole trace and one
finish reason. So what grows is a list, and what must not repeat is in the last chunk only. All is
plain JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.rounds import Round


def chunks(events: Iterable[Event]) -> Iterator[GenerationChunk]:
    """One chunk for each piece of text, with the rounds decided since the last, and one for the end.

    The last chunk's `generation_info` has `finish_reason`, `stop` (the stop string that was hit, or None)
    and `usage`.
    """
    text, rounds = "", list[dict[str, Any]]()
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, RoundDone):
            rounds.append(describe(event.round))
            if text:
                yield GenerationChunk(text=text, generation_info={"adafuse": {"rounds": rounds}})
                text, rounds = "", []
        elif isinstance(event, Finished):
            yield GenerationChunk(text=text, generation_info={"adafuse": {"rounds": rounds}, **_ending(event)})


def describe(played: Round) -> dict[str, Any]:
    """A round in plain values.

    Returns:
        `text` and `ends` of what was committed and its `proposers`; its fused `score` and each member's
        own in `member_scores` (mean NLL in nats per token; None where a lone candidate was not
        scored); `margins` per member; and all `candidates` in the pool.
    """
    names = [draft.member for draft in played.drafts]
    fused: Sequence[float | None] = played.fused or [None] * len(played.candidates)
    candidates = [
        {
            "text": candidate.span.text,
            "ends": candidate.span.ends,
            "proposers": list(candidate.proposers),
            "score": score,
        }
        for candidate, score in zip(played.candidates, fused, strict=True)
    ]
    scores = dict(zip(names, played.scores[played.chosen], strict=True)) if played.scores else None
    return {
        **candidates[played.chosen],
        "text": played.span.text,  # shorter than the candidate where the budget ended inside it
        "ends": played.span.ends,
        "member_scores": scores,
        "margins": {draft.member: list(draft.margins) for draft in played.drafts},
        "candidates": candidates,
    }


def folded(pieces: Sequence[GenerationChunk]) -> Generation:
    """All chunks of an answer as one generation."""
    whole = reduce(add, pieces)
    return Generation(text=whole.text, generation_info=whole.generation_info)


def result(answers: Sequence[Generation], model_name: str) -> LLMResult:
    """Answers to several prompts; token counts are those of the first member."""
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for answer in answers:
        for kind in usage:
            usage[kind] += next(iter((answer.generation_info or {})["usage"][kind].values()))
    total = {**usage, "total_tokens": sum(usage.values())}
    return LLMResult(
        generations=[[answer] for answer in answers],
        llm_output={"model_name": model_name, "token_usage": total},
    )


def _ending(finished: Finished) -> dict[str, Any]:
    return {
        "finish_reason": finished.reason,
        "stop": finished.stop,
        "usage": {
            "prompt_tokens": dict(finished.usage.prompt_tokens),
            "completion_tokens": dict(finished.usage.completion_tokens),
        },
    }
