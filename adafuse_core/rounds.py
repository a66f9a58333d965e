"""The plain values of a decoding round: what is proposed, how it is scored, what is committed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


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
    """How far and how wide a member drafts.

    Args:
        tau: Confidence threshold (τ in the paper), 0..1.
        max_words: Most words (M); None for no bound but `max_tokens`.
        branches: First tokens tried where the member is unsure (B).
        max_tokens: Most tokens of the member; None for no bound but `max_words`. The text is then cut between tokens,
            but never inside a character.
        stop: The draft is over with the token that completes one of these strings, whose text may go beyond it.
    """

    tau: float
    max_words: int | None
    branches: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_words is None and self.max_tokens is None:
            raise ValueError("a draft needs a bound in words or in tokens")


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
class NextToken:
    """What one member may write next.

    Args:
        span: Its text, or the end of the answer. Where a token holds a part of a character, the member's greedy
            continuation up to the whole character belongs to it.
        logprob: Natural log-probability of all of that.
    """

    span: Span
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one member thinks of one span. The end of the answer counts as one token, one word and one byte of it.

    Args:
        member: The member's name.
        logprobs: Natural log-probabilities of the span's tokens in the member's vocabulary, in their order. A token
            that straddles the end of the committed text is written anew, and counts as a whole.
        words: Number of words.
        bytes: Length of the tokens' text in UTF-8. A character of which they hold the end only counts as a whole.
    """

    member: str
    logprobs: tuple[float, ...]
    words: int
    bytes: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the whole span, in nats."""
        return -math.fsum(self.logprobs) if self.logprobs else 0.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A span in the pool and the members that proposed it, in member order."""

    span: Span
    proposers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LibraryText:
    """Text that AdaFuse wrote itself, in the members' place, because a token budget or a context window ends.

    Args:
        text: The text. It goes on to what the grammar wants; no member proposed it.
        kind: `"shortened"`: it only ends a string, list or thought that the members may have continued. `"completed"`:
            it also holds values that no member chose.
        fields: JSON keys: of `"completed"` those whose values it holds, of `"shortened"` the one whose value it ends.
    """

    text: str
    kind: str
    fields: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"text": self.text, "kind": self.kind, "fields": list(self.fields)}


@dataclass(frozen=True, kw_only=True)
class Round:
    """One decision of the ensemble.

    Args:
        drafts: What each member proposed, in member order. Empty where a grammar left no choice, so that nobody
            was asked; the one candidate has no proposers then.
        candidates: The pool without duplicates, in order of member, then branch.
        scores: `[candidates][members]`. Empty where a lone candidate was committed unscored.
        values: `[candidates][members]`, what the scoring rule made of the scores: lower is better.
        fused: `[candidates]`, what the pool made of the members' values: lower is better. Empty as above.
        chosen: Index of the committed candidate.
        cut: What was committed in its place, where the token budget ended inside it: a beginning of it, what a
            grammar needed to end, or both.
        cut_scores: `[members]`, of what was committed in its place, if log-probabilities were asked for.
        library_text: The end of the committed text that no member wrote, if there is one.
    """

    drafts: tuple[Draft, ...]
    candidates: tuple[Candidate, ...]
    scores: tuple[tuple[Score, ...], ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    fused: tuple[float, ...] = ()
    chosen: int = 0
    cut: Span | None = None
    cut_scores: tuple[Score, ...] = ()
    library_text: LibraryText | None = None

    @property
    def winner(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]

    @property
    def span(self) -> Span:
        """The committed span."""
        return self.winner.span if self.cut is None else self.cut

    @property
    def members_text(self) -> str:
        """The committed text without what the library wrote."""
        return self.span.text if self.library_text is None else self.span.text.removesuffix(self.library_text.text)

    @property
    def proposers(self) -> tuple[str, ...]:
        """The members that proposed the committed text, or the beginning of it; none where the library wrote it all."""
        return self.winner.proposers if self.members_text or self.library_text is None else ()

    @property
    def span_scores(self) -> tuple[Score, ...]:
        """What each member thinks of the committed span; empty if it was committed unscored."""
        if self.cut is not None:
            return self.cut_scores
        return self.scores[self.chosen] if self.scores else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values.

        Returns:
            `text` and `ends` of what was committed, its `logprobs` per member (None if it was not scored), and its
            `proposers`; the winner's fused `score` and `member_scores`; `margins` per member; and all `candidates`
            with the same keys. Scores are None where a lone candidate was not scored. `library_text` only if there is.
        """
        candidates = [self._candidate_dict(index) for index in range(len(self.candidates))]
        return {
            **candidates[self.chosen],
            "text": self.span.text,
            "ends": self.span.ends,
            "proposers": list(self.proposers),
            "logprobs": _logprobs(self.span_scores),
            **({} if self.library_text is None else {"library_text": self.library_text.to_dict()}),
            "margins": {draft.member: list(draft.margins) for draft in self.drafts},
            "candidates": candidates,
        }

    def _candidate_dict(self, index: int) -> dict[str, Any]:
        candidate, scores = self.candidates[index], self.scores[index] if self.scores else ()
        values = self.values[index] if self.values else ()
        return {
            "text": candidate.span.text,
            "ends": candidate.span.ends,
            "proposers": list(candidate.proposers),
            "score": self.fused[index] if self.fused else None,
            "member_scores": {score.member: value for score, value in zip(scores, values, strict=True)} or None,
            "logprobs": _logprobs(scores),
        }


def _logprobs(scores: tuple[Score, ...]) -> dict[str, list[float]] | None:
    return {score.member: list(score.logprobs) for score in scores} or None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A continuation of a prompt and what the members think of it.

    Args:
        span: The continuation.
        scores: By member.
        value: What the scoring rule and the pool of the ensemble make of them: lower is better.
    """

    span: Span
    scores: dict[str, Score]
    value: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of prompt and answer, each in the member's own tokens."""

    prompt_tokens: dict[str, int]
    completion_tokens: dict[str, int]
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt_tokens": dict(self.prompt_tokens),
            "completion_tokens": dict(self.completion_tokens),
            "rounds": self.rounds,
        }

    def first(self) -> tuple[str, int, int]:
        """The first member, in whose tokens budgets are counted, and its tokens of prompt and answer."""
        name = next(iter(self.prompt_tokens))
        return name, self.prompt_tokens[name], self.completion_tokens[name]
