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
        proposers: The members that proposed it.
        margins: Per member, top-1 minus top-2 probability at the start of each word it looked at.
        scores: Per member, its mean NLL of the text in nats per token. Empty where there was nothing to choose.
        score: Their weighted mean; None where there was nothing to choose.
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
        members = [draft.member for draft in played.drafts]
        scored = bool(played.fused)
        return cls(
            round=number,
            text=played.span.text,
            ends=played.span.ends,
            proposers=played.winner.proposers,
            margins={draft.member: draft.margins for draft in played.drafts},
            scores=dict(zip(members, played.scores[played.chosen], strict=True)) if scored else {},
            score=played.fused[played.chosen] if scored else None,
        )


class EnsembleWordEvent(BaseEvent):
    """A word was decided. Its `span_id` is that of the LLM call, whichever thread generates."""

    word: EnsembleWord

    @classmethod
    def class_name(cls) -> str:
        """The name in traces."""
        return "EnsembleWordEvent"
