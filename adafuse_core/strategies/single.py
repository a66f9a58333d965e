"""Greedy decoding with one member, word by word: the baseline for every ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adafuse_core.checks import expect_choice
from adafuse_core.chooser import Chooser, pooled
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import DraftPlan, Round
from adafuse_core.strategies.base import Limits, Strategy

_GREEDY = DraftPlan(tau=0.0, max_words=1, branches=1)


@dataclass(frozen=True, kw_only=True)
class Single(Strategy):
    """Greedy decoding with one member; the other members are not used.

    Args:
        member: Name of the member that decodes. Default: the first member.
    """

    name: ClassVar[str] = "single"
    paper: ClassVar[str] = "none: greedy search"

    member: str | None = None

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there is no member of this name."""
        if self.member is not None:
            expect_choice("member", self.member, names)

    def has_choice(self, members: int) -> bool:
        """False: every round has one candidate."""
        return False

    def select(self, members: Sequence[Any]) -> Sequence[Any]:
        """The member that decodes."""
        return [member for member in members if self.member in (None, member.name)][:1]

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """One greedy word per round."""
        while True:
            drafts = prefixes.draft(_GREEDY)
            yield Round(drafts=drafts, candidates=pooled(drafts))
