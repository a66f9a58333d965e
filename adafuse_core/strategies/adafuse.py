"""AdaFuse (arXiv 2601.06022): draft while confident, branch where unsure, commit the best-scored candidate."""

from __future__ import annotations

from collections.abc import Sequence

from adafuse_core.fusion import Chooser, fuse, pool
from adafuse_core.members.base import Member, Prefix, WindowFull
from adafuse_core.rounds import DraftPlan, Round
from adafuse_core.strategies.together import draft_all, score_all


class AdaFuse:
    """The rule of the paper, with the decisions of docs/architecture.md where it is silent.

    Args:
        tau: Confidence threshold (τ).
        max_words: Most words drafted per round (M).
        branches: First tokens tried where a member is unsure (B).
        verify: Whether members read each other's candidates in the pass that starts their draft. Speed only.
    """

    def __init__(self, *, tau: float, max_words: int, branches: int, verify: bool) -> None:
        self._plan = DraftPlan(tau=tau, max_words=max_words, branches=branches)
        self._verify = verify

    def select(self, members: Sequence[Member]) -> Sequence[Member]:
        """All of them."""
        return members

    def play(self, prefixes: Sequence[Prefix], chooser: Chooser) -> Round:
        """Draft, pool, score, choose. Candidates that are too long for a member's context window drop out."""
        drafts = draft_all(prefixes, self._plan, verify=self._verify)
        candidates = tuple(
            candidate for candidate in pool(drafts) if all(prefix.fits(candidate.span) for prefix in prefixes)
        )
        if not candidates:
            raise WindowFull
        if len(candidates) == 1:
            return Round(drafts=drafts, candidates=candidates, scores=(), fused=(), chosen=0)
        scores = score_all(prefixes, [candidate.span for candidate in candidates])
        fused = fuse(scores, [prefix.weight for prefix in prefixes])
        return Round(drafts=drafts, candidates=candidates, scores=scores, fused=fused, chosen=chooser.choose(fused))
