"""The prefixes of one request. Members of one place (a device) run in turn, different places run in parallel."""

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
    """The prefixes of all members for one answer.

    Args:
        prefixes: One per member, in member order.
        verify: Whether the forward pass that starts a member's draft also scores the candidates of earlier members in
            the same place. Affects speed only.
    """

    def __init__(self, prefixes: Sequence[Prefix], *, verify: bool = True) -> None:
        self._prefixes = tuple(prefixes)
        self._verify = verify
        self._runner = PlaceRunner([prefix.place for prefix in self._prefixes])

    @classmethod
    def opened(cls, members: Sequence[Member], opening: Opening, *, verify: bool = True) -> Prefixes:
        """Open a prefix of each member, in all places in parallel. If one fails, the others are closed."""
        opened: list[Prefix] = []

        def in_turn(group: Sequence[int]) -> Iterator[Prefix]:
            for index in group:
                prefix = members[index].open(opening)
                opened.append(prefix)
                yield prefix

        runner = PlaceRunner([member.place for member in members])
        try:
            return cls(runner.run(in_turn), verify=verify)
        except BaseException:
            for prefix in opened:
                prefix.close()
            raise
        finally:
            runner.close()

    def __len__(self) -> int:
        return len(self._prefixes)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes)

    def __getitem__(self, index: int) -> Prefix:
        return self._prefixes[index]

    def draft(self, plan: DraftPlan) -> tuple[Draft, ...]:
        """The draft of each member. Raises `WindowFull`."""

        def in_turn(group: Sequence[int]) -> Iterator[Draft]:
            proposed: dict[Span, None] = {}
            for index in group:
                draft = self._prefixes[index].draft(plan, tuple(proposed) if self._verify else ())
                proposed |= dict.fromkeys(draft.spans)
                yield draft

        return tuple(self._runner.run(in_turn))

    def score(self, spans: Sequence[Span]) -> tuple[tuple[Score, ...], ...]:
        """Scores of all spans by all members, `[spans][members]`."""
        return tuple(zip(*self.each(lambda prefix: prefix.score(spans)), strict=True))

    def fit(self, span: Span, closing: str = "") -> bool:
        """Whether every member's context window has room for the span and a closing text after it."""
        return all(prefix.fits(span, closing) for prefix in self._prefixes)

    def commit(self, span: Span) -> None:
        """Extend the committed text of every member."""
        self.each(lambda prefix: prefix.commit(span))

    def each(self, work: Callable[[Prefix], Result]) -> list[Result]:
        """Run a function on each prefix; results in member order."""
        return self._runner.run(lambda group: (work(self._prefixes[index]) for index in group))

    def close(self) -> None:
        """Close all prefixes, even if one fails. May be called twice."""
        with ExitStack() as closings:
            closings.callback(self._runner.close)
            for prefix in self._prefixes:
                closings.callback(prefix.close)


class PlaceRunner:
    """Runs work for all members: in turn for members of one place, in parallel for different places.

    The thread pool is created by the first `run` with several places.

    Args:
        places: Place of each member.
    """

    def __init__(self, places: Sequence[str]) -> None:
        groups: dict[str, list[int]] = {}
        for index, place in enumerate(places):
            groups.setdefault(place, []).append(index)
        self._groups = list(groups.values())
        self._threads: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Sequence[int]], Iterator[Result]]) -> list[Result]:
        """Run work in all places; results in member order.

        Args:
            work: Function of the member indices of one place; yields a result for each.
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
        """Drop the thread pool, whose threads don't exist in the child."""
        self._threads = None

    def close(self) -> None:
        """Shut the thread pool down."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
