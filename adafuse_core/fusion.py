"""Fuses the members' scores of a candidate.

A scoring rule turns each member's score into a value, and a pool averages the values of the members. Values are
negative log-likelihoods (NLL) per token, word, byte or text, in nats: lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adafuse_core.checks import expect_choice, expect_number
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Score

SCORING: dict[str, Callable[[Score], float]] = {
    "token": lambda score: score.nll / max(1, len(score.logprobs)),  # as in AdaFuse, arXiv 2601.06022
    "word": lambda score: score.nll / max(1, score.words),
    "sqrt_word": lambda score: score.nll / math.sqrt(max(1, score.words)),
    "byte": lambda score: score.nll / max(1, score.bytes),
    "first_word": lambda score: score.word_nlls[0],
    "sum": lambda score: score.nll,
}


def geometric(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean of NLLs: the geometric mean of probabilities, as in AdaFuse. Every member has a veto."""
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


def power(values: Sequence[float], weights: Sequence[float], exponent: float = 0.5) -> float:
    """NLL of the power mean of probabilities.

    An exponent of 0 gives the geometric mean, 1 the arithmetic mean, a large one nearly the highest probability. The
    default lies between the two: a member that finds a text unlikely lowers its score, but has no veto.
    """
    lowest = min(values)
    if exponent == 0:
        return geometric(values, weights)
    if lowest == math.inf:
        return lowest
    shares = (weight * math.exp(exponent * (lowest - value)) for value, weight in zip(values, weights, strict=True))
    return lowest - math.log(math.fsum(shares) / math.fsum(weights)) / exponent


def linear(values: Sequence[float], weights: Sequence[float]) -> float:
    """NLL of the weighted arithmetic mean of probabilities: one confident member can outvote the others."""
    return power(values, weights, 1.0)


def highest(values: Sequence[float], weights: Sequence[float]) -> float:
    """NLL of the highest probability: the member that is surest of a candidate decides. Weights have no effect."""
    return min(values)


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
    "max": highest,
    "median": median,
}


WORD_SCORING = ("word", "sqrt_word", "first_word", "sum")  # rules whose unit is the same for all members


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A scoring rule and a pool.

    Args:
        scoring: Name in `SCORING`.
        pool: Name in `POOLS`.
        pool_exponent: Exponent of `pool="power"`, at least 0. None: 0.5 for `pool="power"`; other pools have none.
        pool_over: What is averaged over the members: `"span"`, their values of whole candidates, or `"word"`, their
            log-likelihoods of every word; the averages of a candidate are then added up and normalised.
    """

    scoring: str = "token"
    pool: str = "geometric"
    pool_exponent: float | None = None
    pool_over: str = "span"

    def __post_init__(self) -> None:
        expect_choice("scoring", self.scoring, SCORING)
        expect_choice("pool", self.pool, POOLS)
        expect_choice("pool_over", self.pool_over, ("span", "word"))
        if self.pool_over == "word" and self.scoring not in WORD_SCORING:
            raise ConfigError(
                f"pool_over='word' has no meaning with scoring={self.scoring!r}",
                hint=f"set pool_over='span', or choose a scoring rule that counts words: {', '.join(WORD_SCORING)}",
            )
        if self.pool_exponent is None:
            return
        if self.pool == "power":
            expect_number("pool_exponent", self.pool_exponent, at_least=0.0)
        else:
            raise ConfigError(
                f"pool_exponent={self.pool_exponent!r} has no meaning for pool={self.pool!r}",
                hint="leave it out, or set pool='power'",
            )

    def values(self, scores: Sequence[Score]) -> tuple[float, ...]:
        """The members' values of one candidate, `[members]`."""
        return tuple(map(SCORING[self.scoring], scores))

    def fuse(self, scores: Sequence[Score], weights: Sequence[float]) -> float:
        """The fused value of one candidate, from scores and weights `[members]`; weights must be > 0."""
        if self.pool_over == "span":
            return self.average(self.values(scores), weights)
        words = zip(*(score.word_nlls for score in scores), strict=True)
        return SCORING[self.scoring](_of_words([self.average(nlls, weights) for nlls in words]))

    def fuse_all(self, rows: Sequence[Sequence[Score]], weights: Sequence[float]) -> tuple[float, ...]:
        """The fused values of the candidates of one round.

        Args:
            rows: Scores `[candidates][members]`.
            weights: `[members]`, > 0.
        """
        return tuple(self.fuse(row, weights) for row in rows)

    def average(self, nlls: Sequence[float], weights: Sequence[float]) -> float:
        """The pool's average of NLLs `[members]`."""
        exponent = () if self.pool_exponent is None else (self.pool_exponent,)
        return POOLS[self.pool](nlls, weights, *exponent)


def _of_words(nlls: Sequence[float]) -> Score:
    """A score that has one token for each word."""
    count = len(nlls)
    ends = tuple(range(1, count + 1))
    return Score(member="", logprobs=tuple(-nll for nll in nlls), words=count, bytes=count, word_ends=ends)
