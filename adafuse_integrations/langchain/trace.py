"""How an answer came about, in plain JSON: its rounds, and what it took.

Made to be added up, as LangChain adds up chunks: what grows is a list, and what must not repeat stands
in the last chunk alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adafuse_core.rounds import Round, Usage


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


def tokens(usage: Usage) -> dict[str, dict[str, int]]:
    """Tokens of prompt and answer, each member's in its own."""
    return {"prompt_tokens": dict(usage.prompt_tokens), "completion_tokens": dict(usage.completion_tokens)}


def usage(told: Mapping[str, Any]) -> Usage:
    """What `tokens` tells, read back; without the rounds."""
    return Usage(**told, rounds=0)
