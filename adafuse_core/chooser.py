"""Chooses one of a round's candidates: members' weights, anchor, sampling."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adafuse_core.fusion import Fusion
from adafuse_core.rounds import Candidate, Draft, Round, Score, Span

_MOST_NLL = 50.0  # per word, in running means: a text may be impossible for a member


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A member whose own word stands unless another candidate is clearly better.

    Args:
        member: Name of the member.
        margin: How much lower the fused value of another candidate must be (δ), in the unit of the scoring rule. With
            infinity, the text is the member's own greedy text.
    """

    member: str
    margin: float


class Chooser:
    """Chooses the candidate with the lowest fused value, or samples one from softmax(-value / temperature).

    One chooser serves one answer.

    Args:
        fusion: Scoring rule and pool.
        weights: `[members]`, > 0.
        temperature: 0 chooses the lowest value; ties go to the earlier candidate.
        seed: Seed for sampling; None for a random seed.
        anchor: A member whose own word is preferred.
        weighting: How the weights change with the rounds. `"agreement"`: they are multiplied by the share of earlier
            rounds in which the candidate that the member scored best was chosen: (agreements + 1) / (rounds + 2), by
            Laplace's rule. `"nll"`: they are divided by the member's mean NLL per word of the texts chosen in earlier
            rounds: (NLL + 1) / (words + 1), of at most 50 nats per word. With other values they don't change.
    """

    def __init__(
        self,
        fusion: Fusion,
        weights: Sequence[float],
        temperature: float = 0.0,
        seed: int | None = None,
        *,
        anchor: Anchor | None = None,
        weighting: str = "static",
    ) -> None:
        self._fusion = fusion
        self._weights = weights
        self._temperature = temperature
        self._random = random.Random(seed)
        self._anchor = anchor
        self._weighting = weighting
        self._agreements = [0] * len(weights)
        self._nlls = [0.0] * len(weights)  # of the chosen texts
        self._words = 0  # of the chosen texts
        self._rounds = 0  # that were decided by scores

    @property
    def samples(self) -> bool:
        """Whether candidates are sampled, so that each of them can be chosen."""
        return self._temperature > 0

    @property
    def weights(self) -> list[float]:
        """The members' weights in the next round."""
        factors = [1.0] * len(self._weights)
        if self._weighting == "agreement":
            factors = [(agreed + 1) / (self._rounds + 2) for agreed in self._agreements]
        elif self._weighting == "nll":
            factors = [(self._words + 1) / (nll + 1) for nll in self._nlls]
        return [weight * factor for weight, factor in zip(self._weights, factors, strict=True)]

    def decide(
        self, drafts: Sequence[Draft], candidates: Sequence[Candidate], scores: Sequence[Sequence[Score]]
    ) -> Round:
        """A round with its scores `[candidates][members]` and its chosen candidate."""
        scored = self.scored(Round(drafts=tuple(drafts), candidates=tuple(candidates)), scores)
        played = replace(scored, chosen=self._choose(scored))
        if self._weighting in ("agreement", "nll"):
            self._count(played)
        return played

    def scored(self, played: Round, scores: Sequence[Sequence[Score]]) -> Round:
        """The round with scores `[candidates][members]` of its candidates. `chosen` is unchanged."""
        values = tuple(map(self._fusion.values, scores))
        fused = self._fusion.fuse_all(scores, self.weights)
        return replace(played, scores=tuple(map(tuple, scores)), values=values, fused=fused)

    def choose(self, fused: Sequence[float]) -> int:
        """Index of the chosen candidate, without regard to an anchor."""
        lowest = min(range(len(fused)), key=fused.__getitem__)
        if self._temperature == 0:
            return lowest
        weights = [math.exp((fused[lowest] - value) / self._temperature) for value in fused]
        return self._random.choices(range(len(fused)), weights)[0]

    def _choose(self, scored: Round) -> int:
        best, own = self.choose(scored.fused), self._own(scored)
        if own is None or self._anchor is None:
            return best
        stands = scored.fused[own] - scored.fused[best] <= self._anchor.margin
        return own if stands or math.isinf(self._anchor.margin) else best

    def _own(self, scored: Round) -> int | None:
        """Index of the anchor's likeliest own candidate; None without an anchor, or if its candidate did not fit."""
        spans = [span for draft in scored.drafts if self._is_anchor(draft.member) for span in draft.spans[:1]]
        return next((index for index, each in enumerate(scored.candidates) if each.span in spans), None)

    def _is_anchor(self, member: str) -> bool:
        return self._anchor is not None and self._anchor.member == member

    def _count(self, played: Round) -> None:
        """Count the members that agree with the choice, and how likely each of them finds it."""
        self._rounds += 1
        scores = played.scores[played.chosen]
        words = max(1, scores[0].words)
        self._words += words
        self._nlls = [nll + min(score.nll, _MOST_NLL * words) for nll, score in zip(self._nlls, scores, strict=True)]
        for member in range(len(self._weights)):
            best = min(range(len(played.values)), key=lambda index: played.values[index][member])
            self._agreements[member] += played.candidates[best].span == played.span


def pooled(drafts: Sequence[Draft]) -> tuple[Candidate, ...]:
    """The candidates of all drafts without duplicates, in order of member, then branch.

    Equal spans that members have continued differently are different candidates.
    """
    proposers: dict[tuple[Span, Span | None], list[str]] = {}
    for draft in drafts:
        for proposal in zip(draft.spans, draft.ahead or [None] * len(draft.spans), strict=True):
            names = proposers.setdefault(proposal, [])
            if draft.member not in names:
                names.append(draft.member)
    return tuple(
        Candidate(span=span, ahead=ahead, proposers=tuple(names)) for (span, ahead), names in proposers.items()
    )
