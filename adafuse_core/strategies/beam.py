"""Beam search over words: the default rule. It is AdaFuse's drafting, with several continuations kept open.

As in AdaFuse, a member writes on where it is confident and tries several words where it is not, and all members score
all proposals. AdaFuse then commits the best proposal at once. The search commits nothing yet: it keeps the best few
continuations of the answer, lets all members extend each of them by a word, and chooses when they have been compared
over several words. So a word that looks unlikely at first can win by what follows, and each word of an answer may be
another member's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from adafuse_core.checks import expect, expect_integer, expect_number
from adafuse_core.chooser import Chooser, pooled
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Draft, DraftPlan, Round, Score, Span
from adafuse_core.strategies.base import Limits, Needs, ScoringStrategy
from adafuse_core.strategies.hypotheses import Hypothesis, Word, any_of, without_doubles
from adafuse_core.text.stop_strings import first_stop


@dataclass(frozen=True, kw_only=True)
class Beam(ScoringStrategy):
    """Beam search: several continuations (hypotheses) of the answer grow word by word, and the best ones are kept.

    In each step every member proposes, for each hypothesis, the words that start with its likeliest first tokens. The
    extended hypotheses with the `beams` lowest values are kept. Their value is the negative log-likelihood of their
    whole uncommitted text, averaged over the members by `pool`, and not normalised: they have equally many words. A
    hypothesis is complete at the end of the answer, after a stop string, and where the token budget or a context window
    is full. It is then set aside until the best hypothesis is chosen. Hypotheses that differ only from a stop string on
    are one, scored as the event that the answer stops there: the last token of its scores has the probability of all
    texts that members have proposed from the stop string on. With `scoring="sum"` and without sampling,
    hypotheses with a higher value than a complete one are dropped: words can only raise it. So is a hypothesis that a
    grammar lets go on only with characters that a member's vocabulary lacks, unless it is the last one.

    Text is committed in two cases. If all hypotheses, complete or not, begin with the same words, these are committed.
    If all are complete, or one has `horizon` words, the best one is committed: the values are now normalised by
    `scoring` (by default not at all), because complete hypotheses differ in length; `temperature` > 0 samples here, and
    nowhere else. The search then starts again. After a commit, members encode the rest of a hypothesis anew.

    Every word is a round of its own, with the members that proposed it and all drafts at this place. The round in which
    a hypothesis is chosen has the first words of all hypotheses as candidates, each with the rest of its hypothesis as
    `Candidate.ahead`; the further words of the chosen one follow without scores. There is no anchor.

    Defaults: the sum of words' scores (`scoring="sum"`, `pool_over="word"`) compares hypotheses as whole continuations,
    neither by their mean, which would favour long words of certain tokens, nor by one member's view of all words. The
    power mean with exponent 0.5 (`pool="power"`) lets the member that knows a word outweigh one that does not. A member
    that is confident (`tau=0.7`) proposes one word, which saves work.

    Args:
        beams: Number of hypotheses that are kept in each step.
        branches: Number of first tokens that a member tries for each next word.
        branch_floor: Least probability of such a first token, as a share of the likeliest one's, 0..1. At 0 all are
            tried; at 0.1, tokens that are less than a tenth as likely are not.
        unlikely_ends: Whether a first token that ends the answer, or completes a stop string, is tried if it is not the
            member's likeliest one.
        horizon: Number of words after which the best hypothesis is committed.
        tau: Confidence threshold, 0..1: a member proposes only its likeliest word where the probabilities of its two
            likeliest next tokens differ by at least this much. At 1 it always proposes `branches` words.

    The other options are those of `ScoringStrategy`, with the defaults `scoring="sum"`, `pool="power"` and
    `pool_over="word"`.
    """

    name: ClassVar[str] = "beam"
    paper: ClassVar[str] = "none: beam search"

    beams: int = 3
    branches: int = 3
    branch_floor: float = 0.0
    unlikely_ends: bool = False
    horizon: int = 8
    tau: float = 0.7
    scoring: str = "sum"
    pool: str = "power"
    pool_over: str = "word"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_integer("beams", self.beams, at_least=1)
        expect_integer("branches", self.branches, at_least=1)
        expect_number("branch_floor", self.branch_floor, at_least=0.0, at_most=1.0)
        expect(isinstance(self.unlikely_ends, bool), "unlikely_ends", self.unlikely_ends, "True or False")
        expect_integer("horizon", self.horizon, at_least=1)
        expect_number("tau", self.tau, at_least=0.0, at_most=1.0)

    @property
    def needs(self) -> Needs:
        """As many of the likeliest tokens as there are branches, and two for the margins in the trace."""
        return Needs(top=max(2, self.branches))

    def has_choice(self, members: int) -> bool:
        """Whether several hypotheses can be kept."""
        return self.beams > 1 and (members > 1 or self.branches > 1)

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """Extend and prune hypotheses until there is text to commit."""
        search = _Search(self, prefixes, chooser, limits)
        while True:
            search.step()
            yield from search.decided() if search.is_over else search.shared()


class _Search:
    """The hypotheses of one answer."""

    def __init__(self, options: Beam, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> None:
        self._options = options
        self._prefixes = prefixes
        self._chooser = chooser
        self._limits = limits
        self._plan = _plan(options, limits)
        self._sums = replace(options.fusion, scoring="sum")
        self._committed = ""
        self._hypotheses: list[Hypothesis] = []
        self._beaten: list[Hypothesis] = []  # complete ones that can't win, for the trace
        self._tails: dict[str, None] = {}  # of all proposals

    @property
    def is_over(self) -> bool:
        """Whether the best hypothesis is to be committed."""
        longest = max(len(each.words) for each in self._hypotheses)
        return longest >= self._options.horizon or all(each.complete for each in self._hypotheses)

    def step(self) -> None:
        """Extend each hypothesis by a word, and prune. Raises `WindowFull` if there is nothing to commit."""
        self._committed = self._prefixes[0].text
        known = [left for each in self._hypotheses if (left := each.after(self._committed))]
        known = without_doubles(known) or [Hypothesis(text=self._committed)]
        complete = [each for each in known if each.complete]
        growing = [each for each in known if not each.complete]
        extended: list[Hypothesis] = []
        stuck: list[Hypothesis] = []
        for hypothesis, drafts in zip(growing, self._draft(growing), strict=True):
            grown = self._extended(hypothesis, drafts)
            extended += grown
            if not grown and hypothesis.words:
                (stuck if _are_stuck(drafts) else complete).append(replace(hypothesis, complete=True))
        self._tails |= dict.fromkeys(each.tail for each in extended if each.tail)
        kept = without_doubles([*complete, *extended])
        complete, extended = kept[: len(complete)], kept[len(complete) :]
        self._hypotheses = [*complete, *self._pruned(extended, complete)] or stuck
        if not self._hypotheses:
            self._prefixes.draft(self._plan)  # raises the error of a member that is stuck
            raise WindowFull

    def decided(self) -> Iterator[Round]:
        """Rounds with the words of the best hypothesis; all hypotheses are candidates of the first one."""
        left = (each.after(self._committed) for each in self._beaten)
        found = [*self._hypotheses, *(each for each in left if each and each.complete)]
        hypotheses = without_doubles(found)
        best = hypotheses[0]
        if len(hypotheses) > 1:
            candidates = [each.candidate(self._committed) for each in hypotheses]
            played = self._chooser.decide((), candidates, self._scores(hypotheses))
            best = hypotheses[played.chosen]
            yield replace(played, drafts=best.words[0].drafts)
        self._hypotheses, self._beaten, self._tails = [], [], {}
        yield from self._words(best)

    def shared(self) -> Iterator[Round]:
        """Rounds with the words with which all hypotheses begin."""
        first, *others = self._hypotheses
        ends = set.intersection(*({word.end for word in each.words} for each in self._hypotheses))
        end = max((end for end in ends if all(each.text.startswith(first.text[:end]) for each in others)), default=0)
        words = tuple(word for word in first.words if word.end <= end)
        yield from self._words(Hypothesis(text=first.text[:end], words=words))

    def _words(self, hypothesis: Hypothesis) -> Iterator[Round]:
        """Rounds with a word each, until all words of a hypothesis are committed."""
        while (left := hypothesis.after(committed := self._prefixes[0].text)) and left.words:
            yield Round(drafts=left.words[0].drafts, candidates=(replace(left.candidate(committed), ahead=None),))

    def _draft(self, hypotheses: Sequence[Hypothesis]) -> list[list[Draft | None]]:
        """Drafts after each hypothesis, `[hypotheses][members]`; None where the member's context window is full."""
        spans = [each.span(self._committed) for each in hypotheses]
        members = self._prefixes.each(lambda prefix: prefix.draft_each(self._plan, spans))
        return [list(drafts) for drafts in zip(*members, strict=True)]

    def _extended(self, hypothesis: Hypothesis, drafts: Sequence[Draft | None]) -> list[Hypothesis]:
        """The hypothesis with each of the drafted words; none if a member can't continue it."""
        found = [draft for draft in drafts if draft is not None and draft.spans]
        if len(found) < len(drafts):
            return []
        here = tuple(_cut(draft, len(hypothesis.text) - len(self._committed)) for draft in found)
        grown = []
        for each in pooled(found):
            if self._prefixes.fit(each.span):
                word = Word(end=len(self._committed + each.span.text), proposers=each.proposers, drafts=here)
                grown.append(self._hypothesis(each.span, (*hypothesis.words, word)))
        return grown

    def _hypothesis(self, span: Span, words: tuple[Word, ...]) -> Hypothesis:
        """A hypothesis, with what completes it: an end, a stop string, or the token budget."""
        first, limit, text = self._prefixes[0], self._limits.max_new_tokens, self._committed + span.text
        stop = first_stop(self._committed, span.text, self._limits.stop)
        full = limit is not None and first.completion_tokens + first.cost(span) >= limit
        body = None if stop is None else text[:stop]
        complete = span.ends or full or body is not None
        return Hypothesis(text=text, ends=span.ends, complete=complete, body=body, words=words)

    def _pruned(self, hypotheses: list[Hypothesis], complete: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The best hypotheses, without those that can't win. They are not scored if all of them are kept."""
        ended = [*complete, *(each for each in hypotheses if each.complete)]
        bounded = bool(ended) and self._options.scoring == "sum" and not self._chooser.samples
        if len(hypotheses) <= self._options.beams and not bounded:
            return hypotheses
        every = [*hypotheses, *complete]
        values = self._sums.fuse_all(self._scores(every), self._chooser.weights)
        valued = list(zip(every, values, strict=True))
        best = sorted(valued[: len(hypotheses)], key=lambda pair: pair[1])[: self._options.beams]
        least = min(value for each, value in valued if each.complete) if bounded else math.inf
        self._beaten += [each for each, value in best if value > least and each.complete]
        return [each for each, value in best if value <= least]

    def _scores(self, hypotheses: Sequence[Hypothesis]) -> list[tuple[Score, ...]]:
        """Scores of hypotheses, `[hypotheses][members]`.

        A hypothesis with a stop string is scored as the event that the answer stops there, with any of the texts that
        members have proposed from the stop string on: one member writes a newline, another one two.
        """
        variants = [self._variants(each) for each in hypotheses]
        spans = list(dict.fromkeys(span for each in variants for span in each))
        scores = dict(zip(spans, self._prefixes.score(spans), strict=True))
        return [tuple(map(any_of, zip(*(scores[span] for span in each), strict=True))) for each in variants]

    def _variants(self, hypothesis: Hypothesis) -> list[Span]:
        """The uncommitted text of a hypothesis, and what differs from it only from the stop string on."""
        own = hypothesis.span(self._committed)
        if hypothesis.body is None:
            return [own]
        others = (hypothesis.with_tail(tail, self._committed) for tail in self._tails)
        return list(dict.fromkeys([own, *(span for span in others if span and self._prefixes.fit(span))]))


def _plan(options: Beam, limits: Limits) -> DraftPlan:
    """One word, or several where the member is uncertain."""
    return DraftPlan(
        tau=options.tau,
        max_words=1,
        branches=options.branches,
        branch_floor=options.branch_floor,
        unlikely_ends=options.unlikely_ends,
        stop=limits.stop,
    )


def _are_stuck(drafts: Sequence[Draft | None]) -> bool:
    """Whether a member can't write what the grammar allows."""
    return any(draft is not None and not draft.spans for draft in drafts)


def _cut(draft: Draft, length: int) -> Draft:
    """A draft whose spans begin that many characters later."""
    return replace(draft, spans=tuple(replace(span, text=span.text[length:]) for span in draft.spans))
