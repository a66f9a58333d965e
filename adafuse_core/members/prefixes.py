"""The prefixes of one request. Members of one place (a device) run in turn, different places run in parallel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

from adafuse_core.chat.grammar import Grammar
from adafuse_core.forks import renew_after_fork
from adafuse_core.members.base import Member, Opening, Prefix, Prompt
from adafuse_core.members.reading import Reading
from adafuse_core.rounds import Draft, DraftPlan, Score, Span

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Prefixes:
    """The prefixes of all members for one answer.

    Args:
        prefixes: One per member, in member order.
        verify: Whether the forward pass that starts a member's draft also scores the candidates of earlier members in
            the same place. Affects speed only.
        members: The members that opened the prefixes.
        opening: The arguments with which they were opened.

    Attributes:
        opening: As above; None if the prefixes were not opened by `opened`.
        reading: How the text of the answer is read, for strategies that compare whole answers.
    """

    def __init__(
        self,
        prefixes: Sequence[Prefix],
        *,
        verify: bool = True,
        members: Sequence[Member] = (),
        opening: Opening | None = None,
    ) -> None:
        self.reading = Reading()
        self.opening = opening
        self._prefixes = tuple(prefixes)
        self._members = {member.name: member for member in members}
        self._asked: list[Prefix] = []
        self._dropped: list[Prefix] = []
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
            return cls(runner.run(in_turn), verify=verify, members=members, opening=opening)
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

    def draft_led_by(self, leader: int, plan: DraftPlan) -> tuple[Draft, ...]:
        """The draft of each member; one of them drafts before all others, which get its spans as hints.

        Args:
            leader: Index of this member.
            plan: Limits of all drafts.

        Raises:
            WindowFull: A member's context window has no room for another token.
        """
        first = self._prefixes[leader]
        lead = first.draft(plan)
        hints = lead.spans if self._verify else ()
        return tuple(self.each(lambda prefix: lead if prefix is first else prefix.draft(plan, hints)))

    def score(self, spans: Sequence[Span]) -> tuple[tuple[Score, ...], ...]:
        """Scores of all spans by all members, `[spans][members]`."""
        return tuple(zip(*self.each(lambda prefix: prefix.score(spans)), strict=True))

    def ask(self, name: str, prompt: Prompt, *, continues: bool = False, grammar: Grammar | None = None) -> Prefix:
        """Open a further prompt with one member, such as a question about the answers of all members.

        The further prefix is closed together with the others. What the strategy commits to it is its own text: the text
        of the answer is not committed to it.

        Args:
            name: Name of the member.
            prompt: The prompt.
            continues: Whether its answer continues the last message, which is the assistant's.
            grammar: Grammar of its answer.

        Raises:
            ContextOverflowError: The prompt is too long for the member.
        """
        assert self.opening is not None, "only prefixes of a request can open further prompts"
        opening = replace(
            self.opening, prompt=prompt, continues=continues, grammar=grammar, tools=None, must_call=False
        )
        self._asked.append(self._members[name].open(opening))
        return self._asked[-1]

    def read_tokens(self, name: str) -> int:
        """Number of tokens that a member's model has read, those of further prompts included."""
        return sum(each.read_tokens for each in (*self.with_dropped, *self._asked) if each.name == name)

    def fit(self, span: Span, closing: str = "") -> bool:
        """Whether every member's context window has room for the span and a closing text after it."""
        return all(prefix.fits(span, closing) for prefix in self._prefixes)

    def drop(self, name: str) -> None:
        """Leave out a member that has failed, and close its prefix."""
        failed = next(prefix for prefix in self._prefixes if prefix.name == name)
        self._prefixes = tuple(prefix for prefix in self._prefixes if prefix is not failed)
        self._dropped.append(failed)
        self._runner.close()
        self._runner = PlaceRunner([prefix.place for prefix in self._prefixes])
        try:
            failed.close()
        except Exception as error:  # whatever has made it fail may prevent this, too
            logger.info("the prefix of member %r could not be closed: %s", name, error)

    @property
    def with_dropped(self) -> tuple[Prefix, ...]:
        """The prefixes of all members, and then those that were left out."""
        return (*self._prefixes, *self._dropped)

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
            for prefix in (*self._prefixes, *self._asked):
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
        running = [self._threads.submit(lambda group: list(work(group)), group) for group in self._groups]
        wait(running)  # all of them, even if one fails: a prefix is used by one thread at a time
        done = [each.result() for each in running]
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
