"""What an ensemble reports round by round: to `on_word` callables, and as an event of LlamaIndex's instrumentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from llama_index.core.instrumentation.events import BaseEvent

from adafuse_core.rounds import Round


@dataclass(frozen=True, kw_only=True)
class EnsembleWord:
    """One decision of the ensemble: the words it chose, and why.

    Args:
        round: Number of the round, from 0.
        text: What was chosen, leading blanks included. A stop string or the token budget may
            still cut the last one short in the answer.
        ends: Whether the answer ends after it.
        proposers: The members that proposed it; none where a grammar forced it, or AdaFuse wrote it in their place.
        margins: Per member, top-1 minus top-2 probability at the start of each word it looked at.
        scores: Per member, what the scoring rule makes of its log-probabilities: by default nats per token. Empty where
            there was nothing to choose.
        score: What the pool makes of them, by default their weighted mean; None where there was nothing to choose.
    """

    round: int
    text: str
    ends: bool
    proposers: tuple[str, ...]
    margins: dict[str, tuple[float, ...]]
    scores: dict[str, float]
    score: float | None

    @classmethod
    def of(cls, number: int, played: Round) -> Self:
        """The report on a round."""
        told = played.to_dict()
        return cls(
            round=number,
            text=played.span.text,
            ends=played.span.ends,
            proposers=played.proposers,
            margins={draft.member: draft.margins for draft in played.drafts},
            scores=told["member_scores"] or {},
            score=told["score"],
        )


class EnsembleWordEvent(BaseEvent):
    """A word was decided. Its `span_id` is that of the LLM call, whichever thread generates."""

    word: EnsembleWord

    @classmethod
    def class_name(cls) -> str:
        """The name in traces."""
        return "EnsembleWordEvent"
