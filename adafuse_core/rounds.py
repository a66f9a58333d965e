"""The plain values of a decoding round: what is proposed, how it is scored, what is committed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Span:
    """Words proposed as a unit.

    Args:
        text: The exact text, leading blanks included.
        ends: Whether the answer ends after it.
    """

    text: str
    ends: bool = False


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """How far and how wide a member drafts: τ, M and B of the paper."""

    tau: float
    max_words: int
    branches: int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What one member proposes in one round.

    Args:
        member: The member's name.
        spans: Its candidates, likeliest branch first.
        margins: Top-1 minus top-2 probability at the start of each word it looked at.
    """

    member: str
    spans: tuple[Span, ...]
    margins: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A span in the pool and the members that proposed it, in member order."""

    span: Span
    proposers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One decision of the ensemble.

    Args:
        drafts: What each member proposed, in member order. Empty where a grammar left no choice, so that nobody
            was asked; the one candidate has no proposers then.
        candidates: The pool without duplicates, in order of member, then branch.
        scores: `scores[c][k]` is member k's mean NLL of candidate c, in nats per token of that
            member. Empty where a lone candidate was committed unscored.
        fused: `fused[c]` is the weighted mean of `scores[c]`; empty as above.
        chosen: Index of the committed candidate.
        cut: What was committed in its place, where the token budget ended inside it: a beginning of it, or what
            a grammar needed to end.
    """

    drafts: tuple[Draft, ...]
    candidates: tuple[Candidate, ...]
    scores: tuple[tuple[float, ...], ...]
    fused: tuple[float, ...]
    chosen: int
    cut: Span | None = None

    @property
    def winner(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def span(self) -> Span:
        """The committed span."""
        return self.winner.span if self.cut is None else self.cut


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of prompt and answer, each in the member's own tokens."""

    prompt_tokens: dict[str, int]
    completion_tokens: dict[str, int]
    rounds: int

    def first(self) -> tuple[str, int, int]:
        """The first member, in whose tokens budgets are counted, and its tokens of prompt and answer."""
        name = next(iter(self.prompt_tokens))
        return name, self.prompt_tokens[name], self.completion_tokens[name]
