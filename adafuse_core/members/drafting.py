"""The drafting rule on one member's tokens: write words while confident, branch at the first uncertain word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adafuse_core.backends.base import Session, TopTokens
from adafuse_core.members.base import WindowFull
from adafuse_core.members.word_tracker import WordTracker
from adafuse_core.rounds import DraftPlan
from adafuse_core.text.ids import Ids
from adafuse_core.text.tokens import INCOMPLETE, MAX_UTF8_BYTES


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A continuation in the member's tokens, without an end token; `ends` tells whether the answer ends after it."""

    ids: Ids
    ends: bool


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
    guesses: Sequence[Ids] = ()  # contexts for the backend to compute in the same pass

    def draft(self, plan: DraftPlan) -> tuple[list[Proposal], list[float]]:
        """Proposals, likeliest first, and the margins at the word starts of the confident run."""
        run = ConfidentRun(self.new_tracker(()), plan, self._stop_check(plan.stop))
        max_new = self._max_new_tokens(plan)
        self.session.draft([self.context], max_new, max(2, plan.branches), run.push, self.guesses)
        if run.uncertain is None or plan.branches == 1:
            full = plan.max_tokens is not None and len(run.tracker.ids) >= plan.max_tokens
            proposals = [self._proposal(run.tracker, run.max_words, partial_word=run.stopped or full)]
        else:
            confident = tuple(run.tracker.ids[: run.tracker.word_starts[len(run.margins) - 1]])
            proposals = self._branch(confident, run.uncertain.ids[: plan.branches], max_new, run.stops)
        if not any(proposals):
            raise WindowFull
        return [proposal for proposal in proposals if proposal], run.margins

    def complete_characters(self, tokens: Sequence[int]) -> list[tuple[Ids, float]]:
        """Continue tokens that hold a part of a character, greedily, until the character is complete.

        Returns:
            For each token its ids and the log-probability of the ids after the token. Tokens whose continuation
            doesn't complete the character are left out.
        """

        def until(row: int, steps: list[TopTokens]) -> bool:
            ids = (tokens[row], *(step.ids[0] for step in steps))
            return ids[-1] in self.end_ids or not self.decode(ids).endswith(INCOMPLETE)

        room = min(MAX_UTF8_BYTES - 1, self.room - 1)
        if not tokens or room <= 0:
            return []
        contexts, completed = [(*self.context, token) for token in tokens], []
        for token, steps in zip(tokens, self.session.draft(contexts, room, 1, until), strict=True):
            ids = (token, *(step.ids[0] for step in steps))
            if ids[-1] not in self.end_ids and not self.decode(ids).endswith(INCOMPLETE):
                completed.append((ids, math.fsum(step.logprobs[0] for step in steps)))
        return completed

    def _max_new_tokens(self, plan: DraftPlan) -> int:
        bounds = [self.room]
        if plan.max_words is not None:
            bounds.append((plan.max_words + 1) * (self.max_word_tokens + MAX_UTF8_BYTES))
        if plan.max_tokens is not None:
            bounds.append(plan.max_tokens)
        return min(bounds)

    def _stop_check(self, strings: tuple[str, ...]) -> Callable[[str], bool]:
        """Tells whether a drafted text completes a stop string, which may have started in the text before it."""
        tails = [(string, self.before[max(0, len(self.before) + 1 - len(string)) :]) for string in strings]
        return lambda text: any(string in tail + text for string, tail in tails)

    def _branch(self, confident: Ids, tokens: Ids, max_new: int, stops: Callable[[str], bool]) -> list[Proposal | None]:
        """For each token, the confident ids followed by the greedy word that starts with it."""
        trackers: dict[int, WordTracker] = {}
        for token in tokens:
            if token not in self.end_ids:
                trackers[token] = self.new_tracker(confident)
                trackers[token].push(token)
        rows = [tracker for tracker in trackers.values() if not stops(tracker.text())]

        def until(row: int, steps: list[TopTokens]) -> bool:
            rows[row].push(steps[-1].ids[0])
            return rows[row].ended or rows[row].words >= 1 or stops(rows[row].text())

        room = max_new - len(confident) - 1
        if rows and room > 0:
            contexts = [(*self.context, *tracker.ids) for tracker in rows]
            self.session.draft(contexts, min(2 * self.max_word_tokens, room), 1, until, self.guesses)
        return [
            self._proposal(trackers[token], 1) if token in trackers else Proposal(ids=confident, ends=True)
            for token in tokens
        ]

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


@dataclass
class ConfidentRun:
    """Follows a greedy continuation up to M words, to the end of the answer, or to the first uncertain word."""

    tracker: WordTracker
    plan: DraftPlan
    stops: Callable[[str], bool]
    margins: list[float] = field(default_factory=list)  # of the words that have started, up to the first uncertain one
    uncertain: TopTokens | None = None  # the distribution at the start of the uncertain word
    stopped: bool = False  # whether a stop string was completed

    def __post_init__(self) -> None:
        # The run ends after this many words. An uncertain word becomes the last one, if there are no branches.
        self.max_words = self.plan.max_words

    def push(self, _: int, steps: list[TopTokens]) -> bool:
        """Append the last step's token; returns whether the run is over."""
        self.tracker.push(steps[-1].ids[0])
        self._check_margins(steps)
        if self.uncertain is not None and self.plan.branches > 1:
            return True
        self.stopped = self.stops(self.tracker.text())
        return (
            self.stopped or self.tracker.ended or (self.max_words is not None and self.tracker.words >= self.max_words)
        )

    def _check_margins(self, steps: list[TopTokens]) -> None:
        """Compute the margins of the words that have started, up to the first below τ."""
        starts = self.tracker.word_starts
        while self.max_words is None or len(self.margins) < self.max_words:
            word = len(self.margins)
            if word >= len(starts) or starts[word] >= len(steps):
                return
            self.margins.append(margin(steps[starts[word]]))
            if self.margins[-1] < self.plan.tau:
                self.uncertain, self.max_words = steps[starts[word]], len(self.margins)


def margin(step: TopTokens) -> float:
    """Top-1 minus top-2 probability (Δ in the paper)."""
    if len(step.logprobs) < 2:
        return 1.0
    return math.exp(step.logprobs[0]) - math.exp(step.logprobs[1])
