"""What a strategy is: it plays one round on the members' prefixes and says what to commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adafuse_core.config import EnsembleConfig
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import Member, Prefix
from adafuse_core.rounds import Round


class Strategy(Protocol):
    """The decision rule of an ensemble."""

    def select(self, members: Sequence[Member]) -> Sequence[Member]:
        """The members that take part."""

    def play(self, prefixes: Sequence[Prefix], chooser: Chooser) -> Round:
        """One round. Raises `WindowFull` when a member has no room left."""


def build_strategy(config: EnsembleConfig) -> Strategy:
    """The strategy that a config names."""
    from adafuse_core.strategies.adafuse import AdaFuse
    from adafuse_core.strategies.single import Single

    if config.strategy == "single":
        return Single(config.member or config.members[0].label)
    verify = config.speculation in ("auto", "verify")
    return AdaFuse(tau=config.tau, max_words=config.max_words, branches=config.branches, verify=verify)
