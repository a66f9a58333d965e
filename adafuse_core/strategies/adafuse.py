"""AdaFuse: draft while confident, branch where uncertain, commit the best-scored candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from adafuse_core.checks import expect_integer, expect_number
from adafuse_core.fusion import Chooser, pooled
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import DraftPlan, Round
from adafuse_core.strategies.base import Needs, Strategy


@dataclass(frozen=True, kw_only=True)
class AdaFuse(Strategy):
    """The decision rule of the paper; docs/architecture.md lists what the paper leaves open.

    Args:
        tau: Confidence threshold (τ in the paper), 0..1: a member continues its draft while the probabilities of
            its two likeliest next tokens differ by at least this much.
        max_words: Most words that a member drafts per round (M in the paper).
        branches: Number of first tokens tried where a member is uncertain (B in the paper).
    """

    name: ClassVar[str] = "adafuse"
    paper: ClassVar[str] = "arXiv 2601.06022"

    tau: float = 0.7
    max_words: int = 3
    branches: int = 3

    def __post_init__(self) -> None:
        expect_number("tau", self.tau, at_least=0.0, at_most=1.0)
        expect_integer("max_words", self.max_words, at_least=1)
        expect_integer("branches", self.branches, at_least=1)

    @property
    def needs(self) -> Needs:
        """The two likeliest tokens for the margin, or as many as there are branches."""
        return Needs(top=max(2, self.branches))

    def has_choice(self, members: int) -> bool:
        """True unless there is one member with one branch."""
        return members > 1 or self.branches > 1

    def rounds(self, prefixes: Prefixes, chooser: Chooser) -> Iterator[Round]:
        """Draft, pool, score, choose. Candidates too long for a member's context window are dropped."""
        plan = DraftPlan(tau=self.tau, max_words=self.max_words, branches=self.branches)
        while True:
            drafts = prefixes.draft(plan)
            candidates = tuple(candidate for candidate in pooled(drafts) if prefixes.fit(candidate.span))
            if not candidates:
                raise WindowFull
            if len(candidates) == 1:
                yield Round(drafts=drafts, candidates=candidates)
            else:
                scores = prefixes.score([candidate.span for candidate in candidates])
                yield chooser.decide(drafts, candidates, scores)
