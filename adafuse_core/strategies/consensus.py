"""AdaFuse without the member that disagrees most (DDS): in each round, an outlier among the members has no vote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from adafuse_core.errors import ConfigError
from adafuse_core.fusion import Fusion
from adafuse_core.rounds import Score
from adafuse_core.strategies.adafuse import AdaFuse

_SAME = 1e-9  # relative and absolute difference below which two distances count as equal


@dataclass(frozen=True, kw_only=True)
class Consensus(AdaFuse):
    """The members draft and score as in AdaFuse; the member that is farthest from the others does not count.

    In each round, a member's values of the candidates give a distribution: softmax(-value) over the candidates. The
    distance of two members is the symmetric Kullback-Leibler divergence Σ (p - q) (ln p - ln q). The member whose
    distances to the others have the largest sum is left out; if several have the same sum, nobody is. The values of the
    remaining members are averaged by `pool`, and the lowest wins. Members that are left out still propose candidates.

    Source: distribution distance-based dynamic selection (DDS) over minimal complete semantic units, arXiv 2508.18763.
    Departures: the paper compares and averages the members' distributions of the next word (a number or a punctuation
    mark counts as a word), whose probability is the product of its tokens' probabilities. Here the candidates may have
    several words, the distributions cover the candidates of the round alone, and at most one member is left out. Near
    to the paper are `max_words=1`, `scoring="sum"` and `pool="linear"`.

    It needs three members or more. All options are those of `AdaFuse`.
    """

    name: ClassVar[str] = "consensus"
    paper: ClassVar[str] = "arXiv 2508.18763"

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there are fewer than three members, or none with the anchor's name."""
        super().check_members(names)
        if len(names) < 3:
            raise ConfigError(
                f"strategy {self.name!r} needs at least 3 members, got {len(names)}: {', '.join(names)}",
                hint="of two members, neither is farther from the other: add a member, or use strategy='adafuse'",
            )

    @property
    def fusion(self) -> Fusion:
        """Scoring rule and pool of the members that are not left out."""
        return ConsensusFusion(**vars(super().fusion))


@dataclass(frozen=True, kw_only=True)
class ConsensusFusion(Fusion):
    """A scoring rule and a pool that leave out the outlier among the members of a round."""

    def fuse_all(self, rows: Sequence[Sequence[Score]], weights: Sequence[float]) -> tuple[float, ...]:
        """The fused values of the candidates; see `Fusion.fuse_all`."""
        left_out = outlier([self.values(row) for row in rows])
        kept = [member for member in range(len(weights)) if member != left_out]
        votes = [weights[member] for member in kept]
        return super().fuse_all([[row[member] for member in kept] for row in rows], votes)


def outlier(rows: Sequence[Sequence[float]]) -> int | None:
    """Index of the member whose distribution is farthest from the others; None if several are equally far.

    Args:
        rows: Values `[candidates][members]`.
    """
    members = [log_softmax(values) for values in zip(*rows, strict=True)]
    sums = [math.fsum(distance(one, other) for other in members) for one in members]
    farthest = [
        member for member, total in enumerate(sums) if math.isclose(total, max(sums), rel_tol=_SAME, abs_tol=_SAME)
    ]
    return farthest[0] if len(farthest) == 1 else None


def log_softmax(values: Sequence[float]) -> list[float]:
    """Log-probabilities of candidates whose negative log-likelihoods are `values`."""
    lowest = min(values)
    total = math.log(math.fsum(math.exp(lowest - value) for value in values))
    return [lowest - value - total for value in values]


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Symmetric Kullback-Leibler divergence of two distributions, given as log-probabilities."""
    return math.fsum((math.exp(p) - math.exp(q)) * (p - q) for p, q in zip(first, second, strict=True))
