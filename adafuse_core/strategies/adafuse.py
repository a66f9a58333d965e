"""AdaFuse: draft while confident, branch where uncertain, commit the best-scored candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from adafuse_core.checks import expect_integer, expect_number
from adafuse_core.chooser import Chooser
from adafuse_core.errors import ConfigError
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import DraftPlan, Round
from adafuse_core.strategies.base import CandidateStrategy, Limits, Needs, decided


@dataclass(frozen=True, kw_only=True)
class AdaFuse(CandidateStrategy):
    """The decision rule of the paper; docs/architecture.md lists what the paper leaves open.

    Args:
        tau: Confidence threshold (τ in the paper), 0..1: a member continues its draft while the probabilities of
            its two likeliest next tokens differ by at least this much.
        max_words: Most words that a member drafts per round (M in the paper).
        branches: Number of first tokens tried where a member is uncertain (B in the paper).
        branch_floor: Least probability of a branch's first token, as a share of the likeliest one's, 0..1. 0 (as in the
            paper) keeps all branches; at 0.1, tokens that are less than a tenth as likely are not tried.
        look_ahead: Number of words to which every candidate is continued, by the member that proposed it, before it is
            scored; continuations stop at a stop string. 0 (as in the paper) scores the candidates themselves.
        commit_words: With `look_ahead`, candidates that are shorter get this many words at most from their
            continuations. The rest of a continuation is scored, but not committed.

    The other options are those of `CandidateStrategy`.
    """

    name: ClassVar[str] = "adafuse"
    paper: ClassVar[str] = "arXiv 2601.06022"

    tau: float = 0.7
    max_words: int = 3
    branches: int = 3
    branch_floor: float = 0.0
    look_ahead: int = 0
    commit_words: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("tau", self.tau, at_least=0.0, at_most=1.0)
        expect_integer("max_words", self.max_words, at_least=1)
        expect_integer("branches", self.branches, at_least=1)
        expect_number("branch_floor", self.branch_floor, at_least=0.0, at_most=1.0)
        expect_integer("look_ahead", self.look_ahead, at_least=0)
        expect_integer("commit_words", self.commit_words, at_least=1)
        if self.commit_words > max(1, self.look_ahead):
            raise ConfigError(
                f"commit_words={self.commit_words} is more than look_ahead={self.look_ahead}",
                hint="candidates can be committed as far as they are continued: raise look_ahead",
            )

    @property
    def needs(self) -> Needs:
        """The two likeliest tokens for the margin, or as many as there are branches."""
        return Needs(top=max(2, self.branches))

    def has_choice(self, members: int) -> bool:
        """True unless there is one member with one branch."""
        return members > 1 or self.branches > 1

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """Draft, pool, score, choose."""
        plan = self._plan(limits)
        while True:
            yield decided(prefixes.draft(plan), prefixes, chooser)

    def _plan(self, limits: Limits) -> DraftPlan:
        return DraftPlan(
            tau=self.tau,
            max_words=self.max_words,
            branches=self.branches,
            branch_floor=self.branch_floor,
            look_ahead=self.look_ahead,
            commit_words=self.commit_words,
            stop=limits.stop if self.look_ahead else (),
        )
