"""The arithmetic of `token_union`: distributions of several members over the same texts become one."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

LARGEST_NLL = 100.0  # of a probability that is 0 or nearly 0
_LEAST_ENTROPY = 0.01  # nats: a member that is certain has a large weight, not an infinite one


def normalised(logprobs: Sequence[float]) -> list[float]:
    """Probabilities that sum to one, from natural log-probabilities; all 0 if all of these are -inf."""
    highest = max(logprobs)
    if highest == -math.inf:
        return [0.0] * len(logprobs)
    probabilities = [math.exp(logprob - highest) for logprob in logprobs]
    total = math.fsum(probabilities)
    return [each / total for each in probabilities]


def nll(probability: float) -> float:
    """Negative natural logarithm, at most `LARGEST_NLL`."""
    return -math.log(max(probability, math.exp(-LARGEST_NLL)))


def fused_distribution(
    rows: Sequence[Sequence[float]], weights: Sequence[float], consistency: float, primary: int
) -> list[float]:
    """The weighted mean of the members' distributions, `[texts]`.

    Args:
        rows: `[members][texts]`, each summing to one.
        weights: `[members]`, > 0.
        consistency: See `consistent`; 0 for the plain mean.
        primary: Index of the primary member.
    """
    if consistency:
        rows, weights = consistent(rows, weights, consistency, primary)
    votes = [math.fsum(map(operator.mul, weights, column)) for column in zip(*rows, strict=True)]
    total = math.fsum(votes)
    return [vote / total for vote in votes]


def consistent(
    rows: Sequence[Sequence[float]], weights: Sequence[float], strength: float, primary: int
) -> tuple[list[list[float]], list[float]]:
    """Votes and weights of members by their consistency, as in CoRE (arXiv 2510.13855).

    The consistency of a text is exp(-β |p - mean of p over the members|). It multiplies the probability of the text,
    for all members but the primary one. A member's weight is multiplied by its mean consistency over all texts, divided
    by the entropy of its distribution (at least 0.01 nats); that of the primary member is at least the largest one.

    Args:
        rows: `[members][texts]`, each summing to one.
        weights: `[members]`, > 0.
        strength: β, > 0.
        primary: Index of the primary member.
    """
    means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    kept = [[math.exp(-strength * abs(p - mean)) for p, mean in zip(row, means, strict=True)] for row in rows]
    trust = [
        math.fsum(each) / len(each) / max(_entropy(row), _LEAST_ENTROPY) for each, row in zip(kept, rows, strict=True)
    ]
    trust[primary] = max(trust)
    votes = [list(map(operator.mul, row, each)) for row, each in zip(rows, kept, strict=True)]
    votes[primary] = list(rows[primary])
    return votes, [weight * each for weight, each in zip(weights, trust, strict=True)]


def _entropy(row: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in row if p > 0)
