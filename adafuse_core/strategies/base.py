"""The base class of strategies: options, requirements, and the rounds of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from adafuse_core.errors import ConfigError
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import Member
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Round

Named = TypeVar("Named")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a strategy requires of every member's backend.

    Args:
        top: Number of likeliest tokens per step, with their log-probabilities.
        full_distribution: Whether it reads whole next-token distributions.
    """

    top: int = 2
    full_distribution: bool = False


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """The decision rule of an ensemble. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: Name in configs.
        paper: Source of the rule.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What the strategy requires of every member's backend."""
        return Needs()

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if an option does not fit the members' names."""

    def check_abilities(self, members: Sequence[Member]) -> None:
        """Raise a `ConfigError` if a member's backend lacks what the strategy needs."""
        for member in self.select(members):
            abilities = member.abilities
            if abilities.top is not None and abilities.top < self.needs.top:
                needed, given = f"the {self.needs.top} likeliest tokens of each step", f"{abilities.top}"
            elif self.needs.full_distribution and not abilities.full_distribution:
                needed, given = "whole next-token distributions", "only the likeliest tokens"
            else:
                continue
            raise ConfigError(
                f"strategy {self.name!r} reads {needed}, but this member's backend reports {given}",
                member=member.name,
                hint="leave this member out, run it with backend='local', or choose fewer branches or another strategy",
            )

    def has_choice(self, members: int) -> bool:
        """Whether a round can have several candidates, for this number of members."""
        return True

    def select(self, members: Sequence[Named]) -> Sequence[Named]:
        """The members that this strategy uses."""
        return members

    def rounds(self, prefixes: Prefixes, chooser: Chooser) -> Iterator[Round]:
        """The rounds of one answer, without end. The caller commits each round before it takes the next one.

        The committed text may differ from a round's span: the token budget may cut the span, and text that a grammar
        forces is committed between two rounds. `Prefix.text` is the committed text.

        Args:
            prefixes: The members' views of the answer.
            chooser: Chooses among candidates, by the scoring rule and the pool of the ensemble.

        Raises:
            WindowFull: A member's context window is full.
        """
        raise NotImplementedError
