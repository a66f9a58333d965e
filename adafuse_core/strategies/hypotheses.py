"""Hypotheses of a search: continuations of the committed text, with their words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from adafuse_core.rounds import Candidate, Draft, Score, Span


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word of a hypothesis.

    Args:
        end: Length of the answer after it.
        proposers: Names of the members that proposed it.
        drafts: The drafts of all members at this place.
    """

    end: int
    proposers: tuple[str, ...]
    drafts: tuple[Draft, ...]


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A continuation of the committed text.

    Args:
        text: The answer with this continuation.
        ends: Whether the answer ends after it.
        complete: Whether it isn't extended any more.
        body: The answer before a stop string, if the continuation completes one.
        words: Its uncommitted words.
    """

    text: str
    ends: bool = False
    complete: bool = False
    body: str | None = None
    words: tuple[Word, ...] = ()

    @property
    def tail(self) -> str:
        """The stop string, with what follows it in the same word."""
        return "" if self.body is None else self.text[len(self.body) :]

    def span(self, committed: str) -> Span:
        """The uncommitted text."""
        return Span(text=self.text[len(committed) :], ends=self.ends)

    def with_tail(self, tail: str, committed: str) -> Span | None:
        """The uncommitted text with another tail; None if the tail does not continue the committed text."""
        text = f"{self.body}{tail}"
        return Span(text=text[len(committed) :]) if text.startswith(committed) else None

    def candidate(self, committed: str) -> Candidate:
        """The first word, scored with the words after it."""
        first, whole = self.words[0], self.span(committed)
        span = whole if len(self.words) == 1 else Span(text=self.text[len(committed) : first.end])
        return Candidate(span=span, proposers=first.proposers, ahead=None if span == whole else whole)

    def after(self, committed: str) -> Hypothesis | None:
        """What is left of it after a commit; None if other text was committed."""
        if committed.startswith(self.text) and not self.ends:  # also if a grammar forced more text
            return Hypothesis(text=committed)
        if not self.text.startswith(committed):
            return None
        left = tuple(word for word in self.words if word.end > len(committed))
        return replace(self, words=left or self.words[-1:])  # the end of the answer is a word without text

    def proposed_with(self, other: Hypothesis) -> Hypothesis:
        """This hypothesis; the proposers of the other one's last word have proposed its last word, too."""
        if len(self.words) != len(other.words) or not self.words:
            return self
        last, names = self.words[-1], other.words[-1].proposers
        proposers = tuple(draft.member for draft in last.drafts if draft.member in (*last.proposers, *names))
        return replace(self, words=(*self.words[:-1], replace(last, proposers=proposers)))


def without_doubles(hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
    """One hypothesis for each answer, the first one. What follows a stop string is not part of the answer."""
    found: dict[tuple[str, bool, bool], Hypothesis] = {}
    for each in hypotheses:
        key = (each.text, each.ends, False) if each.body is None else (each.body, each.ends, True)
        found[key] = found[key].proposed_with(each) if key in found else each
    return list(found.values())


def any_of(variants: Sequence[Score]) -> Score:
    """A member's score of the event that it writes one of several texts.

    Args:
        variants: The member's scores of the texts. Those with another number of words than the first one don't count:
            members are compared word by word.

    Returns:
        The score of the likeliest text; its last token has the probability that is left to all of them.
    """
    alike = [score for score in variants if score.words == variants[0].words]
    best = min(alike, key=lambda score: score.nll)
    different = [score for score in alike if not any(_continues(score, other) for other in alike)]
    if len(different) == 1 or math.isinf(best.nll):
        return best
    more = math.log(math.fsum(math.exp(best.nll - score.nll) for score in different))
    return replace(best, logprobs=(*best.logprobs[:-1], best.logprobs[-1] + more))


def _continues(score: Score, other: Score) -> bool:
    """Whether a text has the tokens of another one, and more: it is a part of the same event."""
    length = len(other.logprobs)
    return length < len(score.logprobs) and score.logprobs[:length] == other.logprobs
