"""Intervals and tests for comparisons of systems: shares, means, and scores of a whole set of answers.

All intervals are at 95% unless `confidence` says otherwise. Differences are paired: both systems answered the same
questions, and the questions are resampled, never the two systems apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5_000  # of a bootstrap: the ends of an interval vary by about a fiftieth of its width
_CHUNK = 2_000_000  # counts in memory at once, for large sets of questions

Floats = NDArray[np.float64]
ScoreOf = Callable[[Floats], float]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its interval.

    Args:
        value: The value.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the width of the interval."""
        return (self.high - self.low) / 2

    def scaled(self, factor: float) -> Estimate:
        """The estimate in another unit, such as percent."""
        return Estimate(value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """The share of successes with Wilson's score interval (1927), which never leaves 0..1.

    Raises:
        ValueError: There are no trials, or more successes than trials.
    """
    share = _share(successes, trials)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrunk = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / shrunk
    half = z / shrunk * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Estimate(value=share, low=max(0.0, min(share, center - half)), high=min(1.0, max(share, center + half)))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """The share of successes with the exact interval of Clopper and Pearson (1934).

    Its coverage is never below `confidence`. For a one-sided bound at 95%, take one end at `confidence=0.9`.

    Raises:
        ValueError: There are no trials, or more successes than trials.
    """
    share, tail = _share(successes, trials), (1 - confidence) / 2
    low = 0.0 if successes == 0 else _root(lambda p: 1 - binomial_tail(successes - 1, trials, p), tail)
    high = 1.0 if successes == trials else _root(lambda p: -binomial_tail(successes, trials, p), -tail)
    return Estimate(value=share, low=low, high=high)


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p-value of McNemar's exact test for two systems that are equally good.

    Args:
        wins: Number of questions that only the first system answers correctly.
        losses: Number of questions that only the second system answers correctly.

    Raises:
        ValueError: A number is negative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"got wins={wins} and losses={losses}, expected numbers of at least 0")
    discordant = wins + losses
    return 1.0 if discordant == 0 else min(1.0, 2 * binomial_tail(min(wins, losses), discordant, 0.5))


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Probability of at most so many successes, summed in logarithms, so that large numbers of trials are exact."""
    if probability <= 0.0 or successes >= trials:
        return 1.0
    if probability >= 1.0:
        return 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    ways = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(successes + 1)]
    return min(1.0, math.fsum(math.exp(way + k * log_p + (trials - k) * log_q) for k, way in enumerate(ways)))


def mean(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95) -> Estimate:
    """The mean with a bootstrap interval."""
    return bootstrap(_as_means(values), mean_of_sums, seed=seed, resamples=resamples, confidence=confidence)


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of `ours - theirs` with a paired bootstrap interval.

    Args:
        ours: Value of each question for the first system.
        theirs: Value of each question for the second system, in the same order.
        seed: Seed of the resampling. The same seed draws the same questions for every pair of systems.
        resamples: Number of resamples.
        confidence: Level of the interval.

    Raises:
        ValueError: There are no values, or their numbers differ.
    """
    return paired_bootstrap(
        _as_means(ours),
        _as_means(theirs),
        mean_of_sums,
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )


def bootstrap(
    rows: Any, score: ScoreOf, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Estimate:
    """A score of all rows with its percentile bootstrap interval.

    Args:
        rows: `[questions][statistics]`: what each question adds to the statistics of the whole set.
        score: The score of summed statistics.
        seed: Seed of the resampling.
        resamples: Number of resamples.
        confidence: Level of the interval.

    Raises:
        ValueError: There are no rows.
    """
    table = _table(rows)
    scores = [score(sums) for sums in _resampled(table, seed, resamples)]
    return _estimate(score(table.sum(axis=0)), scores, confidence)


def paired_bootstrap(
    ours: Any,
    theirs: Any,
    score: ScoreOf,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Estimate:
    """The difference of two scores on the same questions, with its percentile bootstrap interval; see `bootstrap`.

    Raises:
        ValueError: There are no rows, or their numbers differ.
    """
    first, second = _table(ours), _table(theirs)
    if first.shape != second.shape:
        raise ValueError(f"got statistics of shapes {first.shape} and {second.shape}, expected the same questions")
    width = first.shape[1]
    both = np.hstack([first, second])  # [questions, 2 * statistics]
    sums = both.sum(axis=0)
    differences = [score(drawn[:width]) - score(drawn[width:]) for drawn in _resampled(both, seed, resamples)]
    return _estimate(score(sums[:width]) - score(sums[width:]), differences, confidence)


def mean_of_sums(sums: Floats) -> float:
    """The mean from the sum of values and the number of values."""
    return float(sums[0] / sums[1])


def _share(successes: int, trials: int) -> float:
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"got {successes} successes in {trials} trials, expected 0..trials of at least 1 trial")
    return successes / trials


def _root(rising: Callable[[float], float], value: float) -> float:
    """The probability at which a rising function has a value."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


def _as_means(values: Sequence[float]) -> Floats:
    return np.array([(value, 1.0) for value in values], dtype=np.float64).reshape(-1, 2)


def _table(rows: Any) -> Floats:
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"got statistics of shape {table.shape}, expected [questions, statistics] with a question")
    return table


def _resampled(table: Floats, seed: int, resamples: int) -> Iterator[Floats]:
    """Sums of the statistics of resampled questions. How often each question is drawn depends on the seed alone."""
    questions, generator = len(table), np.random.default_rng(seed)
    step = max(1, _CHUNK // questions)
    for first in range(0, resamples, step):
        size = min(step, resamples - first)
        drawn = generator.integers(questions, size=(size, questions)) + questions * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * questions).reshape(size, questions)
        yield from counts.astype(np.float64) @ table


def _estimate(value: float, scores: Sequence[float], confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(scores), [tail, 1 - tail])
    return Estimate(value=float(value), low=float(low), high=float(high))
