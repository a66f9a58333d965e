"""The base class of strategies: options, requirements, and the rounds of an answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from adafuse_core.checks import expect_choice, expect_number
from adafuse_core.chooser import Anchor, Chooser, pooled
from adafuse_core.errors import ConfigError
from adafuse_core.fusion import Fusion
from adafuse_core.members.base import Member, WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Draft, Round, Score

Named = TypeVar("Named")

_PROMPT_BYTES = 512  # of the prompt's end, from which weights follow
_WORD_BYTES = 6  # of an average English word, with its blank: bytes are the same for all members, tokens are not
_WEIGHTINGS = ("static", "prompt", "agreement", "nll")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a strategy requires of every member's backend.

    Args:
        top: Number of likeliest tokens per step, with their log-probabilities.
        full_distribution: Whether it reads whole next-token distributions.
    """

    top: int = 2
    full_distribution: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one answer that a strategy may take into account. They are enforced in any case.

    Args:
        max_new_tokens: Maximum length in tokens of the first member; None for no limit.
        stop: Strings that end the answer.
    """

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """The decision rule of an ensemble. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        name: Name in configs.
        paper: Source of the rule.
    """

    name: ClassVar[str]
    paper: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What the strategy requires of every member's backend."""
        return Needs()

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if an option does not fit the members' names."""

    def check_abilities(self, members: Sequence[Member]) -> None:
        """Raise a `ConfigError` if a member's backend lacks what the strategy needs."""
        for member in self.select(members):
            abilities = member.abilities
            if abilities.top is not None and abilities.top < self.needs.top:
                needed, given = f"the {self.needs.top} likeliest tokens of each step", f"{abilities.top}"
            elif self.needs.full_distribution and not abilities.full_distribution:
                needed, given = "whole next-token distributions", "only the likeliest tokens"
            else:
                continue
            raise ConfigError(
                f"strategy {self.name!r} reads {needed}, but this member's backend reports {given}",
                member=member.name,
                hint="leave this member out, run it with backend='local', or choose fewer branches or top_tokens, or "
                "another strategy",
            )

    def has_choice(self, members: int) -> bool:
        """Whether a round can have several candidates, for this number of members."""
        return True

    def select(self, members: Sequence[Named]) -> Sequence[Named]:
        """The members that this strategy uses."""
        return members

    @property
    def fusion(self) -> Fusion:
        """Scoring rule and pool, also of `Ensemble.score` and of the log-probabilities of lone candidates."""
        return Fusion()

    def chooser(self, prefixes: Prefixes, temperature: float = 0.0, seed: int | None = None) -> Chooser:
        """Chooses among the candidates of one answer.

        Args:
            prefixes: The members' views of the answer, from which the members' weights follow.
            temperature: As in `Chooser`.
            seed: As in `Chooser`.
        """
        return Chooser(self.fusion, [prefix.weight for prefix in prefixes], temperature, seed)

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        """The rounds of one answer, without end. The caller commits each round before it takes the next one.

        The committed text may differ from a round's span: the token budget may cut the span, and text that a grammar
        forces is committed between two rounds. `Prefix.text` is the committed text.

        Args:
            prefixes: The members' views of the answer.
            chooser: Chooses among candidates.
            limits: Token budget and stop strings.

        Raises:
            WindowFull: A member's context window is full.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ScoringStrategy(Strategy):
    """A strategy whose members score texts.

    Args:
        scoring: Unit by which a candidate's log-likelihood is normalised: `"token"` (AdaFuse's paper), `"word"`,
            `"sqrt_word"` (the square root of the number of words), `"byte"`, `"first_word"` (the log-likelihood of the
            first word alone), or `"sum"` (not normalised).
        pool: How the members' scores are averaged: `"geometric"` (AdaFuse's paper; mean of the negative
            log-likelihoods), `"linear"` (mean of the probabilities), `"power"` (power mean of the probabilities),
            `"max"` (the highest probability), or `"median"`.
        pool_exponent: Exponent of `pool="power"`, at least 0: 0 is `"geometric"`, 1 `"linear"`. None is 0.5 for
            `"power"`; the other pools have no exponent.
        pool_over: `"span"`: the members' scores of whole candidates are averaged (AdaFuse's paper). `"word"`: their
            scores of every word are averaged, and the averages added up, so that each word may be another member's.
        weighting: `"static"`: the members' weights are those of the config. `"prompt"`: they are divided by the
            member's perplexity of the end of the prompt, per word (an idea of PackLLM, arXiv 2404.11531, which weights
            token distributions by the perplexity of the prompt per token). `"agreement"`: they are multiplied by the
            share of earlier rounds in which the member's favourite was chosen. `"nll"`: they are divided by the mean
            negative log-likelihood per word that the member gave to the texts chosen in earlier rounds.
    """

    scoring: str = "token"
    pool: str = "geometric"
    pool_exponent: float | None = None
    pool_over: str = "span"
    weighting: str = "static"

    def __post_init__(self) -> None:
        _ = self.fusion  # raises an error if an option is wrong
        expect_choice("weighting", self.weighting, _WEIGHTINGS)

    @property
    def fusion(self) -> Fusion:
        """Scoring rule and pool."""
        return Fusion(scoring=self.scoring, pool=self.pool, pool_exponent=self.pool_exponent, pool_over=self.pool_over)

    def chooser(self, prefixes: Prefixes, temperature: float = 0.0, seed: int | None = None) -> Chooser:
        """Chooses among the candidates of one answer; see `Strategy.chooser`."""
        weights = _weights(prefixes, self.weighting)
        return Chooser(self.fusion, weights, temperature, seed, anchor=self._anchor, weighting=self.weighting)

    @property
    def _anchor(self) -> Anchor | None:
        """The member whose own candidate is preferred."""
        return None


@dataclass(frozen=True, kw_only=True)
class CandidateStrategy(ScoringStrategy):
    """A strategy that chooses one of the members' candidates in every round.

    Args:
        anchor: Name of a member whose own words are preferred.
        anchor_margin: How much better another candidate must be to displace the anchor's own (δ), in the unit of the
            scoring rule. With infinity the text is the anchor's own.
    """

    anchor: str | None = None
    anchor_margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (margin := self.anchor_margin) != math.inf:
            expect_number("anchor_margin", margin, at_least=0.0)
        if self.anchor is None and margin:
            raise ConfigError(
                f"anchor_margin={margin!r} has no meaning without an anchor", hint="name a member: anchor=..."
            )

    def check_members(self, names: Sequence[str]) -> None:
        """Raise a `ConfigError` if there is no member with the anchor's name."""
        if self.anchor is not None:
            expect_choice("anchor", self.anchor, names)

    @property
    def _anchor(self) -> Anchor | None:
        return None if self.anchor is None else Anchor(member=self.anchor, margin=self.anchor_margin)


def _weights(prefixes: Prefixes, weighting: str) -> list[float]:
    """The members' weights before the first round, `[members]`."""
    weights = [prefix.weight for prefix in prefixes]
    if weighting != "prompt" or len(weights) == 1:
        return weights
    return weighted_by_prompt(weights, prefixes.each(lambda prefix: prefix.score_prompt(_PROMPT_BYTES)))


def weighted_by_prompt(weights: Sequence[float], prompts: Sequence[Score]) -> list[float]:
    """The weights divided by the perplexity of the prompt per word of `_WORD_BYTES` bytes, `[members]`."""
    nlls = [prompt.nll / max(1, prompt.bytes) * _WORD_BYTES for prompt in prompts]
    return [weight * math.exp(min(nlls) - nll) for weight, nll in zip(weights, nlls, strict=True)]


def decided(drafts: Sequence[Draft], prefixes: Prefixes, chooser: Chooser) -> Round:
    """A round: all members score the pooled candidates, and one is chosen. A lone candidate is not scored.

    Candidates that are too long for a member's context window are dropped.

    Raises:
        WindowFull: No candidate is left.
    """
    candidates = tuple(candidate for candidate in pooled(drafts) if prefixes.fit(candidate.span))
    if not candidates:
        raise WindowFull
    if len({candidate.span for candidate in candidates}) == 1:
        return Round(drafts=tuple(drafts), candidates=_merged(candidates))
    candidates = tuple(_fitting(candidate, prefixes) for candidate in candidates)
    return chooser.decide(drafts, candidates, prefixes.score([candidate.scored for candidate in candidates]))


def _merged(candidates: Sequence[Candidate]) -> tuple[Candidate]:
    """One candidate in place of several that differ only in their continuations."""
    names = dict.fromkeys(name for candidate in candidates for name in candidate.proposers)
    return (Candidate(span=candidates[0].span, proposers=tuple(names)),)


def _fitting(candidate: Candidate, prefixes: Prefixes) -> Candidate:
    """The candidate, without its continuation if that is too long for a context window."""
    return candidate if prefixes.fit(candidate.scored) else replace(candidate, ahead=None)
