"""The votes: pool what the members propose, fuse their scores, choose one candidate."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from adafuse_core.rounds import Candidate, Draft, Span


def pool(drafts: Sequence[Draft]) -> tuple[Candidate, ...]:
    """All spans without duplicates, in order of member, then branch."""
    proposers: dict[Span, list[str]] = {}
    for draft in drafts:
        for span in draft.spans:
            names = proposers.setdefault(span, [])
            if draft.member not in names:
                names.append(draft.member)
    return tuple(Candidate(span=span, proposers=tuple(names)) for span, names in proposers.items())


def fuse(scores: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    """Weighted mean over the members of each candidate's mean NLL.

    Args:
        scores: `[candidates][members]`, nats per token.
        weights: Per member, > 0.
    """
    total = math.fsum(weights)
    return tuple(
        math.fsum(score * weight for score, weight in zip(row, weights, strict=True)) / total for row in scores
    )


class Chooser:
    """Picks the committed candidate: the lowest score, or a draw from softmax(-score / temperature).

    Args:
        temperature: 0 for the lowest; ties go to the earlier candidate.
        seed: Of the draws; None for a fresh one.
    """

    def __init__(self, temperature: float = 0.0, seed: int | None = None) -> None:
        self._temperature = temperature
        self._random = random.Random(seed)

    def choose(self, fused: Sequence[float]) -> int:
        """Index of the chosen candidate."""
        lowest = min(range(len(fused)), key=fused.__getitem__)
        if self._temperature == 0:
            return lowest
        weights = [math.exp((fused[lowest] - score) / self._temperature) for score in fused]
        return self._random.choices(range(len(fused)), weights)[0]
