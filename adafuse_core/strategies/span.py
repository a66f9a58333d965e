"""Spans of a fixed number of words (SweetSpan, Cool-Fusion, fixed-length AdaFuse): all members score all spans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from adafuse_core.checks import expect_integer, expect_number
from adafuse_core.chooser import Chooser
from adafuse_core.fusion import Fusion
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Draft, DraftPlan, Round
from adafuse_core.strategies.base import CandidateStrategy, Limits, Needs, decided


@dataclass(frozen=True, kw_only=True)
class FixedSpan(CandidateStrategy):
    """Every member writes a span of a fixed number of words, all members score all spans, the best one is committed.

    SweetSpan (arXiv 2409.18583) has `words=4` and a filter for outliers, whose threshold is `outlier_ratio`.
    Cool-Fusion (arXiv 2407.19807) is `words=1`: a word ends where the next one has visibly begun, which is a boundary
    in every tokenizer that splits text at whitespace. Where a member's token crosses the end of a span (scripts without
    spaces, tokenizers without such a split), the member scores this token as a whole in the next round. AdaFuse of
    fixed length is `branches=3`. Departures: a span ends earlier at the end of the answer, and after a stop string; the
    end of the answer is scored; a lone span is committed without scores.

    Args:
        words: Number of words of a span.
        branches: Number of first tokens that a member tries at the start of a span; each is continued greedily.
        outlier_ratio: Largest ratio of the members' highest perplexity of a span to their lowest (λ), at least 1.
            Above it, the highest and the lowest perplexity are left out of the span's value, or with two members only
            the highest. Perplexity is exp(value), with the value of the scoring rule. None: no filter.

    The other options are those of `CandidateStrategy`.
    """

    name: ClassVar[str] = "span"
    paper: ClassVar[str] = "arXiv 2409.18583"

    words: int = 4
    branches: int = 1
    outlier_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_integer("words", self.words, at_least=1)
        expect_integer("branches", self.branches, at_least=1)
        if self.outlier_ratio is not None:
            expect_number("outlier_ratio", self.outlier_ratio, at_least=1.0)

    @property
    def needs(self) -> Needs:
        """As many of the likeliest tokens as there are branches, and two for the margins in the trace."""
        return Needs(top=max(2, self.branches))

    @property
    def fusion(self) -> Fusion:
        """Scoring rule and pool, with the filter if there is one."""
        if self.outlier_ratio is None:
            return super().fusion
        return FilteredFusion(
            **vars(super().fusion),
            outlier_ratio=self.outlier_ratio,
        )

    def has_choice(self, members: int) -> bool:
        """True unless there is one member with one branch."""
        return members > 1 or self.branches > 1

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """Draft spans, pool, score, choose."""
        plan = self._plan(limits)
        while True:
            drafts: list[Draft] = [replace(draft, ahead=()) for draft in prefixes.draft(plan)]
            yield decided(drafts, prefixes, chooser)

    def _plan(self, limits: Limits) -> DraftPlan:
        if self.branches == 1:
            return DraftPlan(tau=0.0, max_words=self.words, branches=1, stop=limits.stop)
        # Branches at the first word, however confident the member is; each is continued to the length of a span.
        return DraftPlan(
            tau=1.0,
            max_words=1,
            branches=self.branches,
            stop=limits.stop,
            look_ahead=self.words,
            commit_words=self.words,
        )


@dataclass(frozen=True, kw_only=True)
class FilteredFusion(Fusion):
    """A scoring rule and a pool that leave out the extreme values of a candidate if they are too far apart.

    Args:
        outlier_ratio: As in `FixedSpan`.
    """

    outlier_ratio: float

    def average(self, nlls: Sequence[float], weights: Sequence[float]) -> float:
        """The average of the members that remain; see `Fusion.average`. Of equal extremes, the first is left out."""
        lowest, highest = min(nlls), max(nlls)
        if highest - lowest <= math.log(self.outlier_ratio):
            return super().average(nlls, weights)
        left_out = {nlls.index(highest)} | ({nlls.index(lowest)} if len(nlls) > 2 else set())
        kept = [member for member in range(len(nlls)) if member not in left_out]
        return super().average([nlls[member] for member in kept], [weights[member] for member in kept])
