"""Fuses the members' scores of the candidates, and chooses one candidate.

A scoring rule turns each member's score into a value, a pool averages the values of the members, and the candidate with
the lowest average wins. Values are negative log-likelihoods (NLL) per token, word, byte or text, in nats.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adafuse_core.checks import expect_choice, expect_number
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Candidate, Draft, Round, Score, Span

SCORING: dict[str, Callable[[Score], float]] = {
    "token": lambda score: score.nll / max(1, len(score.logprobs)),  # as in AdaFuse, arXiv 2601.06022
    "word": lambda score: score.nll / max(1, score.words),
    "byte": lambda score: score.nll / max(1, score.bytes),
    "sum": lambda score: score.nll,
}


def geometric(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean of NLLs: the geometric mean of probabilities, as in AdaFuse. Every member has a veto."""
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


def power(values: Sequence[float], weights: Sequence[float], exponent: float) -> float:
    """NLL of the power mean of probabilities.

    An exponent near 0 gives the geometric mean, 1 the arithmetic mean, a large one the highest probability.
    """
    lowest = min(values)
    if lowest == math.inf:
        return lowest
    shares = (weight * math.exp(exponent * (lowest - value)) for value, weight in zip(values, weights, strict=True))
    return lowest - math.log(math.fsum(shares) / math.fsum(weights)) / exponent


def linear(values: Sequence[float], weights: Sequence[float]) -> float:
    """NLL of the weighted arithmetic mean of probabilities: one confident member can outvote the others."""
    return power(values, weights, 1.0)


def median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted median of NLLs; the mean of the two middle values if there are two."""
    half, below = math.fsum(weights) / 2, 0.0
    ranked = sorted(zip(values, weights, strict=True))
    for (value, weight), (above, _) in zip(ranked, [*ranked[1:], ranked[-1]], strict=True):
        below += weight
        if math.isclose(below, half):
            return (value + above) / 2
        if below > half:
            return value
    return ranked[-1][0]


POOLS: dict[str, Callable[..., float]] = {
    "geometric": geometric,
    "linear": linear,
    "power": power,
    "median": median,
}


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A scoring rule and a pool.

    Args:
        scoring: Name in `SCORING`.
        pool: Name in `POOLS`.
        pool_exponent: Exponent of `pool="power"`, above 0.
    """

    scoring: str
    pool: str
    pool_exponent: float | None = None

    def __post_init__(self) -> None:
        expect_choice("scoring", self.scoring, SCORING)
        expect_choice("pool", self.pool, POOLS)
        if self.pool == "power":
            expect_number("pool_exponent", self.pool_exponent, above=0.0)
        elif self.pool_exponent is not None:
            raise ConfigError(
                f"pool_exponent={self.pool_exponent!r} has no meaning for pool={self.pool!r}",
                hint="leave it out, or set pool='power'",
            )

    def values(self, scores: Sequence[Score]) -> tuple[float, ...]:
        """The members' values of one candidate, `[members]`."""
        return tuple(map(SCORING[self.scoring], scores))

    def fuse(self, values: Sequence[float], weights: Sequence[float]) -> float:
        """The fused value of one candidate, from values and weights `[members]`; weights must be > 0."""
        exponent = () if self.pool_exponent is None else (self.pool_exponent,)
        return POOLS[self.pool](values, weights, *exponent)


class Chooser:
    """Chooses the candidate with the lowest fused value, or samples one from softmax(-value / temperature).

    Args:
        fusion: Scoring rule and pool.
        weights: `[members]`, > 0.
        temperature: 0 chooses the lowest value; ties go to the earlier candidate.
        seed: Seed for sampling; None for a random seed.
    """

    def __init__(
        self, fusion: Fusion, weights: Sequence[float], temperature: float = 0.0, seed: int | None = None
    ) -> None:
        self._fusion = fusion
        self._weights = weights
        self._temperature = temperature
        self._random = random.Random(seed)

    def decide(
        self, drafts: Sequence[Draft], candidates: Sequence[Candidate], scores: Sequence[Sequence[Score]]
    ) -> Round:
        """A round with its scores `[candidates][members]` and its chosen candidate."""
        scored = self.scored(Round(drafts=tuple(drafts), candidates=tuple(candidates)), scores)
        return replace(scored, chosen=self.choose(scored.fused))

    def scored(self, played: Round, scores: Sequence[Sequence[Score]]) -> Round:
        """The round with scores `[candidates][members]` of its candidates. `chosen` is unchanged."""
        values = tuple(map(self._fusion.values, scores))
        fused = tuple(self._fusion.fuse(row, self._weights) for row in values)
        return replace(played, scores=tuple(map(tuple, scores)), values=values, fused=fused)

    def choose(self, fused: Sequence[float]) -> int:
        """Index of the chosen candidate."""
        lowest = min(range(len(fused)), key=fused.__getitem__)
        if self._temperature == 0:
            return lowest
        weights = [math.exp((fused[lowest] - value) / self._temperature) for value in fused]
        return self._random.choices(range(len(fused)), weights)[0]


def pooled(drafts: Sequence[Draft]) -> tuple[Candidate, ...]:
    """The candidates of all drafts without duplicates, in order of member, then branch."""
    proposers: dict[Span, list[str]] = {}
    for draft in drafts:
        for span in draft.spans:
            names = proposers.setdefault(span, [])
            if draft.member not in names:
                names.append(draft.member)
    return tuple(Candidate(span=span, proposers=tuple(names)) for span, names in proposers.items())
