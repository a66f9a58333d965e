"""The drafting rule on one member's tokens: write words while confident, branch at the first uncertain word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from adafuse_core.backends.base import Session, TopTokens
from adafuse_core.members.word_tracker import WordTracker
from adafuse_core.rounds import DraftPlan
from adafuse_core.text.ids import Ids
from adafuse_core.text.stop_strings import first_stop
from adafuse_core.text.tokens import INCOMPLETE, MAX_UTF8_BYTES


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A continuation in the member's tokens, without an end token; `ends` tells whether the answer ends after it.

    `ahead` is the longer continuation that `DraftPlan.look_ahead` asks for, or None.
    """

    ids: Ids
    ends: bool
    ahead: Proposal | None = None


@dataclass(kw_only=True)
class Drafter:
    """Continues one context."""

    session: Session
    context: Ids  # non-empty
    decode: Callable[[Ids], str]  # text of ids after the context
    before: str  # text before the draft; stop strings may start in it
    new_tracker: Callable[[Ids], WordTracker]  # a tracker that starts after the given ids
    end_ids: frozenset[int]  # tokens that end an answer
    max_word_tokens: int
    room: int  # number of tokens that fit after the context, at least one
    may_be_blank: bool  # whether a draft without visible text counts as an end; False under a grammar

    def confident_run(self, plan: DraftPlan) -> ConfidentRun:
        """A run that has no token yet."""
        return ConfidentRun(
            tracker=self.new_tracker(()),
            plan=plan,
            stops=self._stop_check(plan.stop),
            context=self.context,
            room=self._max_new_tokens(plan),
        )

    def branches(self, run: ConfidentRun) -> list[Branch]:
        """The branches of a finished run, without tokens after the first; none if the run proposes a single span."""
        if run.uncertain is None or run.plan.branches == 1:
            return []
        before = len(run.margins) - 1  # number of confident words
        confident = tuple(run.tracker.ids[: run.tracker.word_starts[before]])
        words, room = max(1, run.plan.look_ahead - before), run.room - len(confident) - 1
        branches: list[Branch] = []
        for token in branch_tokens(run.uncertain, run.plan):
            tracker = self.new_tracker(confident)
            tracker.push(token)
            over = tracker.ended or run.stops(tracker.text())
            if over and branches and not run.plan.unlikely_ends:
                continue
            room_left = 0 if over else room
            branches.append(Branch(tracker=tracker, words=words, stops=run.stops, before=self.context, room=room_left))
        return branches

    def proposals(self, run: ConfidentRun, branches: Sequence[Branch]) -> list[Proposal]:
        """What a finished run and its finished branches propose, likeliest first.

        Nothing if there is no room, or where a grammar allows no token of the vocabulary.
        """
        if branches:
            before = len(run.margins) - 1
            found = [self._of_branch(branch, before, run.plan) for branch in branches if not branch.is_dead]
        elif run.is_dead and not run.tracker.words:
            return []
        else:
            full = run.plan.max_tokens is not None and len(run.tracker.ids) >= run.plan.max_tokens
            found = [self._continued(run.tracker, run.max_words, 0, run.plan, cut=run.stopped or full)]
        return [proposal for proposal in found if proposal]

    def is_text(self, ids: Ids) -> bool:
        """Whether ids after the context have text that ends with a whole character."""
        text = self.decode(ids)
        return bool(text) and not text.endswith(INCOMPLETE)

    def extend_to_text(self, tokens: Sequence[int]) -> list[tuple[Ids, float]]:
        """Extend tokens without text, or with a part of a character, greedily until they are whole characters.

        Returns:
            For each token its ids and the log-probability of the ids after the token. Tokens that do not become whole
            characters within the tokens of one character are left out.
        """

        def until(row: int, steps: list[TopTokens]) -> bool:
            ids = (tokens[row], *(step.ids[0] for step in steps))
            return ids[-1] in self.end_ids or self.is_text(ids)

        room = min(MAX_UTF8_BYTES - 1, self.room - 1)
        if not tokens or room <= 0:
            return []
        contexts, extended = [(*self.context, token) for token in tokens], []
        for token, steps in zip(tokens, self.session.draft(contexts, room, 1, until), strict=True):
            ids = (token, *(step.ids[0] for step in steps))
            if ids[-1] not in self.end_ids and self.is_text(ids):
                extended.append((ids, math.fsum(step.logprobs[0] for step in steps)))
        return extended

    def _max_new_tokens(self, plan: DraftPlan) -> int:
        bounds = [self.room]
        if plan.max_words is not None:
            words = max(plan.max_words, plan.look_ahead)
            bounds.append((words + 1) * (self.max_word_tokens + MAX_UTF8_BYTES))
        if plan.max_tokens is not None:
            bounds.append(plan.max_tokens)
        return min(bounds)

    def _stop_check(self, strings: tuple[str, ...]) -> Callable[[str], bool]:
        """Tells whether a drafted text completes a stop string, which may have started in the text before it.

        A character that is incomplete at the end of the draft is not text yet.
        """
        return lambda text: first_stop(self.before, text.rstrip(INCOMPLETE), strings) is not None

    def _of_branch(self, branch: Branch, before: int, plan: DraftPlan) -> Proposal | None:
        tracker = branch.tracker
        if tracker.ended and len(tracker.ids) == len(tracker.start):  # the first token ends the answer
            end = Proposal(ids=tracker.start, ends=True)
            return replace(end, ahead=end) if plan.look_ahead else end
        return self._continued(tracker, 1, before, plan)

    def _continued(
        self, tracker: WordTracker, words: int | None, before: int, plan: DraftPlan, *, cut: bool = False
    ) -> Proposal | None:
        """The proposal with its longer continuation, if the plan looks ahead.

        Args:
            tracker: Words of the continuation.
            words: Number of words to propose; None if unbounded.
            before: Number of words before the tracker's first one.
            plan: Words to look ahead, and to commit of them.
            cut: Whether the draft was cut off, so that an unfinished last word is part of it.
        """
        if words is None or not plan.look_ahead:
            return self._proposal(tracker, words, partial_word=cut)
        cut = cut or self._stop_check(plan.stop)(tracker.text())
        ahead = self._proposal(tracker, max(words, plan.look_ahead - before), partial_word=cut)
        committed = min(plan.commit_words, plan.look_ahead) - before
        proposal = self._proposal(tracker, max(words, committed), partial_word=cut)
        return proposal and replace(proposal, ahead=ahead)

    def _proposal(self, tracker: WordTracker, max_words: int | None, *, partial_word: bool = False) -> Proposal | None:
        """The part of a finished continuation to propose; None if it holds no complete character.

        Args:
            tracker: Words of the continuation.
            max_words: Maximum number of words to propose; None if unbounded.
            partial_word: Whether to include an unfinished last word.
        """
        if max_words is not None and tracker.words >= max_words:
            return Proposal(ids=tuple(tracker.ids[: tracker.word_starts[max_words]]), ends=False)
        if tracker.at_end:
            return Proposal(ids=tuple(tracker.ids), ends=True)
        if tracker.words and not partial_word:
            return Proposal(ids=tuple(tracker.ids[: tracker.word_starts[-1]]), ends=False)
        if not tracker.text() and self.may_be_blank:  # no visible text within the token limit: treat it as an end
            return Proposal(ids=tuple(tracker.ids), ends=True)
        lengths = range(len(tracker.ids), 0, -1)
        complete = next((length for length in lengths if not tracker.text(length).endswith(INCOMPLETE)), 0)
        return Proposal(ids=tuple(tracker.ids[:complete]), ends=False) if complete else None


@dataclass(kw_only=True)
class Row:
    """A greedy continuation."""

    tracker: WordTracker
    stops: Callable[[str], bool]
    room: int  # most tokens; 0 if the row is over
    over: bool = False

    @property
    def is_dead(self) -> bool:
        """Whether the continuation could not go on, because a grammar allows no token of the vocabulary."""
        return self.room > 0 and not self.over


@dataclass(kw_only=True)
class ConfidentRun(Row):
    """Follows a greedy continuation up to M words, to the end of the answer, or to the first uncertain word."""

    plan: DraftPlan
    context: Ids
    margins: list[float] = field(default_factory=list)  # of the words that have started, up to the first uncertain one
    uncertain: TopTokens | None = None  # the distribution at the start of the uncertain word
    stopped: bool = False  # whether a stop string was completed

    def __post_init__(self) -> None:
        # The run ends after this many words. An uncertain word becomes the last one, if there are no branches.
        self.max_words = self.plan.max_words

    def push(self, steps: list[TopTokens]) -> bool:
        """Append the last step's token; returns whether the run is over."""
        self.tracker.push(steps[-1].ids[0])
        self._check_margins(steps)
        if self.uncertain is not None and self.plan.branches > 1:
            return True
        self.stopped = self.stops(self.tracker.text())
        return self.stopped or self.tracker.ended or self._is_long_enough()

    def _is_long_enough(self) -> bool:
        return self.max_words is not None and self.tracker.words >= max(self.max_words, self.plan.look_ahead)

    def _check_margins(self, steps: list[TopTokens]) -> None:
        """Compute the margins of the words that have started, up to the first below τ."""
        starts = self.tracker.word_starts
        while self.max_words is None or len(self.margins) < self.max_words:
            word = len(self.margins)
            if word >= len(starts) or starts[word] >= len(steps):
                return
            self.margins.append(steps[starts[word]].margin)
            if self.margins[-1] < self.plan.tau:
                self.uncertain, self.max_words = steps[starts[word]], len(self.margins)


@dataclass(kw_only=True)
class Branch(Row):
    """Greedy words that start with one of the likeliest tokens of an uncertain word."""

    words: int  # number of words
    before: Ids  # the context of the draft

    @property
    def context(self) -> Ids:
        """The context after the tokens so far."""
        return (*self.before, *self.tracker.ids)

    def push(self, steps: list[TopTokens]) -> bool:
        """Append the last step's token; returns whether the branch is over."""
        self.tracker.push(steps[-1].ids[0])
        return self.tracker.ended or self.tracker.words >= self.words or self.stops(self.tracker.text())


def draft_each(
    session: Session, drafters: Sequence[Drafter], plan: DraftPlan, guesses: Sequence[Ids] = ()
) -> list[tuple[list[Proposal], list[float]] | None]:
    """Draft after several contexts of one session, in the same passes.

    Args:
        session: The session of all drafters.
        drafters: One for each context.
        plan: Limits of each draft.
        guesses: Contexts for the backend to compute in the same pass.

    Returns:
        For each context its proposals, likeliest first, and the margins at the word starts of the confident run; None
        if the context window has no room for a proposal. No proposals where a grammar allows no token.
    """
    runs = [drafter.confident_run(plan) for drafter in drafters]
    _continue(session, runs, max(2, plan.branches), guesses)
    branches = [drafter.branches(run) for drafter, run in zip(drafters, runs, strict=True)]
    _continue(session, [branch for each in branches for branch in each], 1, guesses)
    return [
        (proposals, run.margins)
        if (proposals := drafter.proposals(run, own)) or any(row.is_dead for row in (run, *own))
        else None
        for drafter, run, own in zip(drafters, runs, branches, strict=True)
    ]


def _continue(session: Session, rows: Sequence[ConfidentRun | Branch], top: int, guesses: Sequence[Ids]) -> None:
    """Continue rows greedily until each is over, or has no more room."""
    growing = [row for row in rows if row.room > 0]
    if growing:
        contexts, longest = [row.context for row in growing], max(row.room for row in growing)

        def until(index: int, steps: list[TopTokens]) -> bool:
            row = growing[index]
            row.over = row.push(steps) or len(steps) >= row.room
            return row.over

        session.draft(contexts, longest, top, until, guesses)


def branch_tokens(step: TopTokens, plan: DraftPlan) -> Ids:
    """The first tokens of the branches: the B likeliest, without those below the floor."""
    least = step.logprobs[0] + math.log(plan.branch_floor) if plan.branch_floor else -math.inf
    likeliest = zip(step.ids[: plan.branches], step.logprobs, strict=False)
    return tuple(token for token, logprob in likeliest if logprob >= least)
