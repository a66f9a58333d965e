"""Rerank: each member writes a whole answer, and one of them is chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from adafuse_core.checks import expect, expect_choice
from adafuse_core.chooser import Chooser
from adafuse_core.errors import ConfigError
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Round
from adafuse_core.strategies.base import CandidateStrategy, Limits
from adafuse_core.strategies.similarity import chrf, normalised
from adafuse_core.strategies.whole_answers import continued, whole_answers

RULES = ("vote", "mbr", "nll", "own")


@dataclass(frozen=True, kw_only=True)
class Rerank(CandidateStrategy):
    """Each member writes a whole answer greedily, and one of them is chosen.

    Rules: majority vote (self-consistency, arXiv 2203.11171, here over models instead of samples); minimum Bayes risk
    (Kumar and Byrne 2004), with chrF as similarity; lowest NLL under all members, as in LLM ensembles that select among
    answers (arXiv 2510.02377, which does so only where a vote has no majority: `rule="vote"`). Departures: votes and
    similarities are weighted by the members' weights, and the NLL uses the ensemble's `scoring` and `pool`.

    An answer is compared without its thought and up to its stop string. With a temperature, an answer is sampled from
    softmax(-value / temperature), where the value is the NLL, the negative share of votes, or the negative similarity.

    The options of `CandidateStrategy` apply, but `weighting="agreement"` is refused, and an anchor if the rule is not
    `"nll"`.

    Args:
        rule: `"vote"`: the answer that most members give; ties are decided by the NLL under all members. `"mbr"`: the
            answer that is most similar to those of all members. `"nll"`: the lowest NLL under all members. `"own"`: the
            lowest NLL under the member that wrote it.
        answer_pattern: Regular expression of the part of an answer that counts as a vote, such as `"#### *(.+)"`: the
            last match, or its first group. By default, and without a match, the whole answer counts. Case, blanks and
            punctuation at the ends make no difference.
    """

    name: ClassVar[str] = "rerank"
    paper: ClassVar[str] = "arXiv 2203.11171 (vote), Kumar and Byrne 2004 (mbr), arXiv 2510.02377 (nll)"

    rule: str = "vote"
    answer_pattern: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("rule", self.rule, RULES)
        self._check_pattern()
        if self.weighting in ("agreement", "nll"):
            raise ConfigError(
                f"weighting={self.weighting!r} has no meaning for strategy 'rerank', which decides once per answer",
                hint="leave it out, or use strategy='adafuse'",
            )
        if self.anchor is not None and self.rule != "nll":
            raise ConfigError(
                f"anchor={self.anchor!r} has no meaning for rule={self.rule!r}", hint="leave it out, or set rule='nll'"
            )

    def _check_pattern(self) -> None:
        if self.answer_pattern is None:
            return
        expect(isinstance(self.answer_pattern, str), "answer_pattern", self.answer_pattern, "a text or None")
        if self.rule != "vote":
            raise ConfigError(
                f"answer_pattern={self.answer_pattern!r} has no meaning for rule={self.rule!r}",
                hint="leave it out, or set rule='vote'",
            )
        try:
            re.compile(self.answer_pattern)
        except re.error as error:
            raise ConfigError(f"answer_pattern={self.answer_pattern!r} is no regular expression: {error}") from error

    def has_choice(self, members: int) -> bool:
        """True if several members answer."""
        return members > 1

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """One round with the chosen answer. If a budget or a grammar cut it, its author continues it."""
        drafts, candidates = whole_answers(prefixes, limits)
        played = Round(drafts=drafts, candidates=candidates)
        if len(candidates) > 1:
            played = _Answers(self, played, prefixes, chooser, limits).chosen()
        yield played
        yield from continued(prefixes, limits, played.winner.proposers[0])


class _Answers:
    """The answers of one round, and what the rules say about them."""

    def __init__(self, strategy: Rerank, played: Round, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> None:
        self._strategy = strategy
        self._played = played
        self._prefixes = prefixes
        self._chooser = chooser
        self._stop = limits.stop
        self._weights = dict(zip((prefix.name for prefix in prefixes), chooser.weights, strict=True))
        self._before = prefixes[0].text

    def chosen(self) -> Round:
        """The round with its chosen answer, and with scores, if the rule needed them."""
        return {"vote": self._vote, "mbr": self._mbr, "nll": self._nll, "own": self._own}[self._strategy.rule]()

    def _nll(self) -> Round:
        return self._chooser.decide(self._played.drafts, self._played.candidates, self._scored().scores)

    def _own(self) -> Round:
        played = self._scored()
        names = [prefix.name for prefix in self._prefixes]
        values = [
            min(value for name, value in zip(names, row, strict=True) if name in candidate.proposers)
            for candidate, row in zip(played.candidates, played.values, strict=True)
        ]
        return replace(played, chosen=self._chooser.choose(values))

    def _mbr(self) -> Round:
        answers = {draft.member: self._text(draft.spans[0].text) for draft in self._played.drafts}
        texts = [self._text(candidate.span.text) for candidate in self._played.candidates]
        values = [-self._mean({name: chrf(text, answer) for name, answer in answers.items()}) for text in texts]
        return replace(self._played, chosen=self._chooser.choose(values))

    def _vote(self) -> Round:
        votes = {draft.member: self._vote_of(draft.spans[0].text) for draft in self._played.drafts}
        cast = [self._vote_of(candidate.span.text) for candidate in self._played.candidates]
        values = [-self._mean({name: float(other == vote) for name, other in votes.items()}) for vote in cast]
        best = self._chooser.choose(values)
        tied = [index for index, value in enumerate(values) if math.isclose(value, values[best])]
        if len(tied) == 1:
            return replace(self._played, chosen=best)
        played = self._scored()
        return replace(played, chosen=min(tied, key=played.fused.__getitem__))

    def _scored(self) -> Round:
        spans = [candidate.span for candidate in self._played.candidates]
        return self._chooser.scored(self._played, self._prefixes.score(spans))

    def _mean(self, values: Mapping[str, float]) -> float:
        """The mean of the members' values, by weight."""
        total = math.fsum(self._weights[name] * value for name, value in values.items())
        return total / math.fsum(self._weights.values())

    def _text(self, text: str) -> str:
        return self._prefixes.reading.shown(self._before + text, self._stop)

    def _vote_of(self, text: str) -> str:
        shown, pattern = self._text(text), self._strategy.answer_pattern
        matches = [] if pattern is None else list(re.finditer(pattern, shown))
        if not matches:
            return normalised(shown)
        last = matches[-1]
        return normalised(last[1] or "" if last.re.groups else last[0])
