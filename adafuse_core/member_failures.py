"""A member that fails while an answer is written: the answer fails, too, or goes on without it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from adafuse_core.config import EnsembleConfig
from adafuse_core.errors import ConfigError, MemberError
from adafuse_core.events import MemberDropped
from adafuse_core.members.base import Member, Opening, Prefix
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Span

logger = logging.getLogger(__name__)


def opened(
    members: Sequence[Member], opening: Opening, config: EnsembleConfig, *, verify: bool
) -> tuple[Prefixes, list[MemberDropped]]:
    """The prefixes of all members that can be opened, and the members that can't.

    Raises:
        MemberError: A member failed, and the answer must not or can't go on without it.
    """
    dropped: list[MemberDropped] = []
    while True:
        try:
            return Prefixes.opened(members, opening, verify=verify), dropped
        except MemberError as error:
            dropped.append(_dropped(error, [member.name for member in members], config))
            members = [member for member in members if member.name != error.member]


def drop(error: MemberError, prefixes: Prefixes, config: EnsembleConfig) -> MemberDropped:
    """Leave out the member that has failed.

    Raises:
        MemberError: The given error, if the answer must not or can't go on without the member.
    """
    event = _dropped(error, [prefix.name for prefix in prefixes], config)
    prefixes.drop(event.member)
    return event


def commit(prefixes: Prefixes, span: Span, config: EnsembleConfig) -> Iterator[MemberDropped]:
    """Extend the committed text of every member; yields the members that failed and were left out."""
    done: set[str] = set()

    def commit_once(prefix: Prefix) -> None:
        if prefix.name not in done:
            prefix.commit(span)
            done.add(prefix.name)

    while True:
        try:
            prefixes.each(commit_once)
            return
        except MemberError as error:
            yield drop(error, prefixes, config)


def _dropped(error: MemberError, names: Sequence[str], config: EnsembleConfig) -> MemberDropped:
    """The event for a member that is left out; raises the error if the others must not or can't go on."""
    left = [name for name in names if name != error.member]
    if config.on_member_failure == "fail" or error.member is None or not 0 < len(left) < len(names):
        raise error
    try:
        config.strategy.check_members(left)
    except ConfigError as problem:
        error.add_note(f"the answer can't go on without it: {problem.message}")
        raise error from problem
    logger.warning("the answer goes on without member %r, which failed: %s", error.member, error.message)
    return MemberDropped(member=error.member, error=error.message)
