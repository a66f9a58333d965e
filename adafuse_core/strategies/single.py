"""One member alone: its plain greedy decoding, word by word. The control that every ensemble is held against."""

from __future__ import annotations

from collections.abc import Sequence

from adafuse_core.fusion import Chooser, pool
from adafuse_core.members.base import Member, Prefix
from adafuse_core.rounds import DraftPlan, Round

_GREEDY = DraftPlan(tau=0.0, max_words=1, branches=1)


class Single:
    """Greedy decoding of the named member; the others are not even opened."""

    def __init__(self, member: str) -> None:
        self._member = member

    def select(self, members: Sequence[Member]) -> Sequence[Member]:
        """The one."""
        return [member for member in members if member.name == self._member]

    def play(self, prefixes: Sequence[Prefix], chooser: Chooser) -> Round:
        """Its next word."""
        draft = prefixes[0].draft(_GREEDY)
        return Round(drafts=(draft,), candidates=pool([draft]), scores=(), fused=(), chosen=0)
