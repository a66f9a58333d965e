"""The drafting rule on the tokens of one member: write while confident, branch at the first unsure word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from adafuse_core.backends.base import Session, TopTokens
from adafuse_core.members.base import WindowFull
from adafuse_core.members.writer import Writer
from adafuse_core.rounds import DraftPlan
from adafuse_core.text.ids import Ids
from adafuse_core.text.tokens import INCOMPLETE, MAX_UTF8_BYTES


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A continuation in the member's own tokens.

    Args:
        ids: Without an end token.
        ends: Whether the answer ends after them.
    """

    ids: Ids
    ends: bool


@dataclass(kw_only=True)
class Drafter:
    """Continues one context.

    Args:
        session: The backend's.
        context: Token ids, non-empty.
        decode: Text of ids after the context.
        before: The text that stop strings may have begun in.
        new_writer: Makes a writer that goes on after some ids.
        end_ids: Tokens that end an answer.
        max_word_tokens: Where a word is cut.
        room: Tokens that fit after the context; at least one.
        may_be_blank: Whether a draft without visible text may be proposed: under a grammar it must go on.
    """

    session: Session
    context: Ids
    decode: Callable[[Ids], str]
    before: str
    new_writer: Callable[[Ids], Writer]
    end_ids: frozenset[int]
    max_word_tokens: int
    room: int
    may_be_blank: bool
    guesses: Sequence[Ids] = ()

    def draft(self, plan: DraftPlan) -> tuple[list[Proposal], list[float]]:
        """Proposals, likeliest first, and the margins that were looked at."""
        run = ConfidentRun(self.new_writer(()), plan, self._stops(plan.stop))
        most = self._most_tokens(plan)
        self.session.draft([self.context], most, max(2, plan.branches), run.push, self.guesses)
        if run.unsure is None or plan.branches == 1:
            whole = run.stopped or (plan.max_tokens is not None and len(run.writer.ids) >= plan.max_tokens)
            proposals = [self._cut(run.writer, run.goal, whole=whole)]
        else:
            confident = tuple(run.writer.ids[: run.writer.word_starts[len(run.margins) - 1]])
            proposals = self._branch(confident, run.unsure.ids[: plan.branches], most, run.stops)
        if not any(proposals):
            raise WindowFull
        return [proposal for proposal in proposals if proposal], run.margins

    def settle(self, tokens: Sequence[int]) -> list[tuple[Ids, float]]:
        """Complete the characters that tokens hold a part of: ids, and the log-probability of those after the token.

        A token whose greedy continuation does not complete its character is left out.
        """

        def until(row: int, steps: list[TopTokens]) -> bool:
            ids = (tokens[row], *(step.ids[0] for step in steps))
            return ids[-1] in self.end_ids or not self.decode(ids).endswith(INCOMPLETE)

        contexts = [(*self.context, token) for token in tokens]
        room = min(MAX_UTF8_BYTES - 1, self.room - 1)
        if not contexts or room <= 0:
            return []
        rows, settled = self.session.draft(contexts, room, 1, until), []
        for token, steps in zip(tokens, rows, strict=True):
            ids = (token, *(step.ids[0] for step in steps))
            if ids[-1] not in self.end_ids and not self.decode(ids).endswith(INCOMPLETE):
                settled.append((ids, math.fsum(step.logprobs[0] for step in steps)))
        return settled

    def _most_tokens(self, plan: DraftPlan) -> int:
        bounds = [self.room]
        if plan.max_words is not None:
            bounds.append((plan.max_words + 1) * (self.max_word_tokens + MAX_UTF8_BYTES))
        if plan.max_tokens is not None:
            bounds.append(plan.max_tokens)
        return min(bounds)

    def _stops(self, strings: tuple[str, ...]) -> Callable[[str], bool]:
        """Whether a drafted text completes one of the strings, which may have begun before it."""
        begun = [(string, self.before[max(0, len(self.before) + 1 - len(string)) :]) for string in strings]
        return lambda text: any(string in before + text for string, before in begun)

    def _branch(self, confident: Ids, tokens: Ids, most: int, stops: Callable[[str], bool]) -> list[Proposal | None]:
        """Variants that begin with each token and finish its word greedily, within `most` tokens."""
        writers: dict[int, Writer] = {}
        for token in tokens:
            if token not in self.end_ids:
                writers[token] = self.new_writer(confident)
                writers[token].push(token)
        rows = [writer for writer in writers.values() if not stops(writer.text(len(writer.ids)))]

        def until(row: int, steps: list[TopTokens]) -> bool:
            rows[row].push(steps[-1].ids[0])
            return rows[row].ended or rows[row].words >= 1 or stops(rows[row].text(len(rows[row].ids)))

        room = most - len(confident) - 1
        if rows and room > 0:
            contexts = [(*self.context, *writer.ids) for writer in rows]
            self.session.draft(contexts, min(2 * self.max_word_tokens, room), 1, until, self.guesses)
        return [
            self._cut(writers[token], 1) if token in writers else Proposal(ids=confident, ends=True) for token in tokens
        ]

    def _cut(self, writer: Writer, words: int | None, *, whole: bool = False) -> Proposal | None:
        """What a continuation proposes once it is over; None where it has not come to a whole character.

        Args:
            writer: Of the continuation.
            words: Words that were wanted; None for no bound.
            whole: Whether an unfinished word is proposed too.
        """
        if words is not None and writer.words >= words:
            return Proposal(ids=tuple(writer.ids[: writer.word_starts[words]]), ends=False)
        if writer.at_end:
            return Proposal(ids=tuple(writer.ids), ends=True)
        if writer.words and not whole:
            return Proposal(ids=tuple(writer.ids[: writer.word_starts[-1]]), ends=False)
        if not writer.text(len(writer.ids)) and self.may_be_blank:  # nothing visible in all that room: an end
            return Proposal(ids=tuple(writer.ids), ends=True)
        ids = _whole_characters(writer)
        return Proposal(ids=ids, ends=False) if ids else None


@dataclass
class ConfidentRun:
    """Follows a greedy continuation up to M words, to the end of the answer, or to the first unsure word.

    Attributes:
        goal: Words after which it is over: M, or the unsure word where there is one branch; None for no bound.
        margins: Of the words that have begun, up to the first unsure one.
        unsure: The distribution at the start of the unsure word, if there is one.
        stopped: Whether a stop string was completed.
    """

    writer: Writer
    plan: DraftPlan
    stops: Callable[[str], bool]
    margins: list[float] = field(default_factory=list)
    unsure: TopTokens | None = None
    stopped: bool = False

    def __post_init__(self) -> None:
        self.goal = self.plan.max_words

    def push(self, _: int, steps: list[TopTokens]) -> bool:
        """Take one more step; whether the run is over."""
        self.writer.push(steps[-1].ids[0])
        self._look_at_margins(steps)
        if self.unsure is not None and self.plan.branches > 1:
            return True
        self.stopped = self.stops(self.writer.text(len(self.writer.ids)))
        return self.stopped or self.writer.ended or (self.goal is not None and self.writer.words >= self.goal)

    def _look_at_margins(self, steps: list[TopTokens]) -> None:
        """Look at the start of every word that has begun since; an unsure one is the last."""
        starts = self.writer.word_starts
        while self.goal is None or len(self.margins) < self.goal:
            word = len(self.margins)
            if word >= len(starts) or starts[word] >= len(steps):
                return
            self.margins.append(margin(steps[starts[word]]))
            if self.margins[-1] < self.plan.tau:
                self.unsure, self.goal = steps[starts[word]], len(self.margins)


def margin(step: TopTokens) -> float:
    """Top-1 minus top-2 probability (Δ in the paper)."""
    if len(step.logprobs) < 2:
        return 1.0
    return math.exp(step.logprobs[0]) - math.exp(step.logprobs[1])


def _whole_characters(writer: Writer) -> Ids:
    """The longest beginning that ends with a whole character; empty if there is none."""
    whole = (count for count in range(len(writer.ids), 0, -1) if not writer.text(count).endswith(INCOMPLETE))
    return tuple(writer.ids[: next(whole, 0)])
