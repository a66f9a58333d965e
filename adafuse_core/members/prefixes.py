"""The prefixes of one request, worked on together: members of one place take turns, places work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from adafuse_core.forks import renew_after_fork
from adafuse_core.members.base import Member, Opening, Prefix
from adafuse_core.rounds import Draft, DraftPlan, Score, Span

Result = TypeVar("Result")


class Prefixes:
    """All members' views of one answer.

    Args:
        prefixes: In the order of the members.
        verify: Whether a member reads, in the pass that starts its draft, what members before it in the same
            place proposed. That pass is its scoring of them, too. Speed only.
    """

    def __init__(self, prefixes: Sequence[Prefix], *, verify: bool = True) -> None:
        self._prefixes = tuple(prefixes)
        self._verify = verify
        self._side_by_side = SideBySide([prefix.place for prefix in self._prefixes])

    @classmethod
    def opened(cls, members: Sequence[Member], opening: Opening, *, verify: bool = True) -> Prefixes:
        """A prefix of each member, opened at the same time in all places. If one fails, the others are closed."""
        opened: list[Prefix] = []

        def in_turn(group: Sequence[int]) -> Iterator[Prefix]:
            for index in group:
                prefix = members[index].open(opening)
                opened.append(prefix)
                yield prefix

        side_by_side = SideBySide([member.place for member in members])
        try:
            return cls(side_by_side.run(in_turn), verify=verify)
        except BaseException:
            for prefix in opened:
                prefix.close()
            raise
        finally:
            side_by_side.close()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes)

    def __getitem__(self, index: int) -> Prefix:
        return self._prefixes[index]

    def draft(self, plan: DraftPlan) -> tuple[Draft, ...]:
        """What each member proposes. Raises `WindowFull`."""

        def in_turn(group: Sequence[int]) -> Iterator[Draft]:
            proposed: dict[Span, None] = {}
            for index in group:
                draft = self._prefixes[index].draft(plan, tuple(proposed) if self._verify else ())
                proposed |= dict.fromkeys(draft.spans)
                yield draft

        return tuple(self._side_by_side.run(in_turn))

    def score(self, spans: Sequence[Span]) -> tuple[tuple[Score, ...], ...]:
        """`[spans][members]`: what each member thinks of each span."""
        return tuple(zip(*self.each(lambda prefix: prefix.score(spans)), strict=True))

    def fit(self, span: Span, closing: str = "") -> bool:
        """Whether every member's context window has room for the span, and a closing text after it."""
        return all(prefix.fits(span, closing) for prefix in self._prefixes)

    def commit(self, span: Span) -> None:
        """Extend the committed text of every member."""
        self.each(lambda prefix: prefix.commit(span))

    def each(self, work: Callable[[Prefix], Result]) -> list[Result]:
        """Results of some work on each prefix, in the order of the members."""
        return self._side_by_side.run(lambda group: (work(self._prefixes[index]) for index in group))

    def close(self) -> None:
        """Free the memory of all, also if that fails for one of them. May be called twice."""
        with ExitStack() as closings:
            closings.callback(self._side_by_side.close)
            for prefix in self._prefixes:
                closings.callback(prefix.close)


class SideBySide:
    """Runs work for several members: one after the other where they share a place, at the same time elsewhere.

    Threads start with the first work of more than one place.

    Args:
        places: Of each member.
    """

    def __init__(self, places: Sequence[str]) -> None:
        groups: dict[str, list[int]] = {}
        for index, place in enumerate(places):
            groups.setdefault(place, []).append(index)
        self._groups = list(groups.values())
        self._threads: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Sequence[int]], Iterator[Result]]) -> list[Result]:
        """Results in the order of the members.

        Args:
            work: Given the indices of the members of a place; yields a result for each.
        """
        if len(self._groups) == 1:
            return list(work(self._groups[0]))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self._groups), thread_name_prefix="adafuse-place")
            renew_after_fork(self)
        done = list(self._threads.map(lambda group: list(work(group)), self._groups))
        found = {
            index: result
            for group, part in zip(self._groups, done, strict=True)
            for index, result in zip(group, part, strict=True)
        }
        return [found[index] for index in sorted(found)]

    def after_fork(self) -> None:
        """Begin without threads."""
        self._threads = None

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
