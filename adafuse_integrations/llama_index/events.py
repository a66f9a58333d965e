"""Reports after each round: `EnsembleWord` for `on_word`, and an event for LlamaIndex's instrumentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from llama_index.core.instrumentation.events import BaseEvent

from adafuse_core.rounds import Round


@dataclass(frozen=True, kw_only=True)
class EnsembleWord:
    """The result of one round: the words that the ensemble chose, and the numbers behind the choice.

    Args:
        round: Number of the round, from 0.
        text: The chosen words, with leading blanks. In the answer, a stop string or the token budget may cut the text
            of the last round.
        ends: Whether the answer ends after the words.
        proposers: The members that proposed the words. Empty if a grammar forced the text, or if AdaFuse wrote it
            instead of the members.
        margins: Per member, the probability of the likeliest token minus that of the second likeliest, at the start of
            each word that the member considered.
        scores: Per member, its score of the words, by default in nats per token. Empty if a lone candidate was not
            scored.
        score: Score of the ensemble, by default the weighted mean of `scores`. None if a lone candidate was not scored.
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
        """Make the report of a round."""
        values = played.to_dict()
        return cls(
            round=number,
            text=played.span.text,
            ends=played.span.ends,
            proposers=played.proposers,
            margins={draft.member: draft.margins for draft in played.drafts},
            scores=values["member_scores"] or {},
            score=values["score"],
        )


class EnsembleWordEvent(BaseEvent):
    """Instrumentation event after each round. `span_id` is the span of the LLM call, on whichever thread it runs."""

    word: EnsembleWord

    @classmethod
    def class_name(cls) -> str:
        """Name of the event in traces."""
        return "EnsembleWordEvent"
