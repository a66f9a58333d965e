"""What a strategy is: its own options, and the rounds of an answer that it plays with them."""

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
    """What a strategy asks of every member's backend.

    Args:
        top: Likeliest tokens at each step, with their log-probabilities.
        full_distribution: Whether it reads all of a next-token distribution.
    """

    top: int = 2
    full_distribution: bool = False


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """The decision rule of an ensemble. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: In configs.
        paper: Where the rule comes from.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What it asks of every member's backend."""
        return Needs()

    def check_members(self, names: Sequence[str]) -> None:
        """Refuse options that don't fit the members of these names, by a `ConfigError`."""

    def check_abilities(self, members: Sequence[Member]) -> None:
        """Refuse members whose backends can't give what it needs, by a `ConfigError`."""
        for member in self.select(members):
            given = member.abilities
            if given.top is not None and given.top < self.needs.top:
                what = f"the {self.needs.top} likeliest tokens of each step", f"reports {given.top}"
            elif self.needs.full_distribution and not given.full_distribution:
                what = "whole next-token distributions", "reports the likeliest tokens only"
            else:
                continue
            raise ConfigError(
                f"strategy {self.name!r} reads {what[0]}, and this member's backend {what[1]}",
                member=member.name,
                hint="leave it out or run it with backend='local', or choose fewer branches or another strategy",
            )

    def has_choice(self, members: int) -> bool:
        """Whether a round of so many members can have several candidates to choose from."""
        return True

    def select(self, members: Sequence[Named]) -> Sequence[Named]:
        """The members that take part."""
        return members

    def rounds(self, prefixes: Prefixes, chooser: Chooser) -> Iterator[Round]:
        """The rounds of one answer, without end; whoever asks for the next one has committed the last.

        What is committed may differ from a round's span: the token budget may cut it, and text that a grammar forces
        is committed between two rounds. `Prefix.text` tells what it is.

        Args:
            prefixes: The members' views of the answer.
            chooser: Picks among candidates, by the scoring rule and the pool of the ensemble.

        Raises:
            WindowFull: A member has no room left.
        """
        raise NotImplementedError
