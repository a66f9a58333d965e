"""The plain values of a decoding round: drafts, candidates, scores and the decision."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of text that is proposed, scored and committed as a unit.

    Args:
        text: The exact text, including leading blanks.
        ends: Whether the answer ends after the text.
    """

    text: str
    ends: bool = False


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """Length and width of a member's draft.

    Args:
        tau: Confidence threshold (τ in the paper), 0..1.
        max_words: Maximum number of words (M); None for no limit but `max_tokens`.
        branches: Number of first tokens to try at a word below the threshold (B).
        branch_floor: Least probability of such a token, as a share of the likeliest one's; 0 for no bound.
        unlikely_ends: Whether a first token that ends the answer, or completes a stop string, is tried if it is not the
            likeliest one.
        max_tokens: Maximum number of the member's tokens; None for no limit but `max_words`. The draft is cut between
            tokens, but never inside a character.
        stop: Strings that end the draft after the token that completes the string. The token may contain more text.
        look_ahead: Each proposal is also continued greedily to this many words, unless it has as many, or ends.
        commit_words: Proposals that are continued get this many words at most from the continuation.
    """

    tau: float
    max_words: int | None
    branches: int
    branch_floor: float = 0.0
    unlikely_ends: bool = True
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    look_ahead: int = 0
    commit_words: int = 1

    def __post_init__(self) -> None:
        if self.max_words is None and self.max_tokens is None:
            raise ValueError("a draft needs a bound in words or in tokens")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The proposals of one member in one round.

    Args:
        member: Name of the member.
        spans: Proposed spans, most likely branch first.
        margins: Top-1 minus top-2 probability at the start of each drafted word (Δ in the paper).
        ahead: The spans with their greedy continuations (`DraftPlan.look_ahead`), in the same order; empty without.
    """

    member: str
    spans: tuple[Span, ...]
    margins: tuple[float, ...]
    ahead: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """A possible next token of one member.

    Args:
        span: Text of the token, or the end of the answer. A token without text, or with a part of a character, is
            extended greedily to a whole character.
        logprob: Natural log-probability of the span.
    """

    span: Span
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """Log-probabilities of one span under one member. The end of the answer counts as one token, word and byte.

    Args:
        member: Name of the member.
        logprobs: Natural log-probabilities of the span's tokens in the member's vocabulary, in order. A token that
            straddles the start of the span is included.
        words: Number of words.
        bytes: Number of UTF-8 bytes in these tokens. A character that starts before them is counted in full.
        word_ends: For each word, the number of these tokens up to its end. A token that holds the ends of several words
            counts for the first of them; tokens after the last word count for it.
    """

    member: str
    logprobs: tuple[float, ...]
    words: int
    bytes: int
    word_ends: tuple[int, ...]

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the whole span, in nats."""
        return -math.fsum(self.logprobs) if self.logprobs else 0.0

    @property
    def word_nlls(self) -> tuple[float, ...]:
        """Negative log-likelihood of each word, in nats; of the whole span, if it has no word."""
        parts = itertools.pairwise((0, *(self.word_ends or (len(self.logprobs),))))
        return tuple(-math.fsum(self.logprobs[start:end]) for start, end in parts)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A span that may be committed. Members that propose the same span share one candidate.

    Args:
        span: The span.
        proposers: Names of the members that proposed the span, in member order.
        ahead: The span with its greedy continuation, which is scored in its place; None if the span itself is scored.
    """

    span: Span
    proposers: tuple[str, ...]
    ahead: Span | None = None

    @property
    def scored(self) -> Span:
        """The text that is scored."""
        return self.span if self.ahead is None else self.ahead


@dataclass(frozen=True, kw_only=True)
class LibraryText:
    """Text that AdaFuse wrote in the members' place, because a token budget or context window is nearly full.

    Args:
        text: The text. The grammar allows it, but no member proposed it.
        kind: `"shortened"`: the text only closes a string, list or thought that the members could have continued.
            `"completed"`: the text also contains values that no member chose.
        fields: JSON keys: for `"completed"` the keys of these values, for `"shortened"` the key of the closed value.
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
        drafts: Draft of each member, in member order. Empty if the text was forced by a grammar or written by AdaFuse;
            the only candidate then has no proposers.
        candidates: Distinct proposals, in order of member, then branch.
        scores: `[candidates][members]`, of the span or its continuation; in beam search, of the event that the answer
            stops, if it completes a stop string. Empty if the choice needed none.
        values: `[candidates][members]`, scores after the scoring rule: lower is better. Empty like `scores`.
        fused: `[candidates]`, values after pooling: lower is better. Empty like `scores`.
        chosen: Index of the chosen candidate.
        cut: The span that was committed instead of the chosen candidate, if the token budget or a context window was
            too small for the candidate: its beginning, the ending that the grammar requires, or both.
        committed_scores: `[members]`, scores of the committed span, if they are not among `scores`, such as those of a
            cut span; empty unless log-probabilities were requested.
        library_text: Text that AdaFuse wrote itself at the end of the committed span, if any.
    """

    drafts: tuple[Draft, ...]
    candidates: tuple[Candidate, ...]
    scores: tuple[tuple[Score, ...], ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    fused: tuple[float, ...] = ()
    chosen: int = 0
    cut: Span | None = None
    committed_scores: tuple[Score, ...] = ()
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
        """The committed text without `library_text`."""
        return self.span.text if self.library_text is None else self.span.text.removesuffix(self.library_text.text)

    @property
    def proposers(self) -> tuple[str, ...]:
        """Members that proposed the committed text or its beginning; empty if AdaFuse wrote all of it."""
        return self.winner.proposers if self.members_text or self.library_text is None else ()

    @property
    def span_scores(self) -> tuple[Score, ...]:
        """Scores of the committed span, `[members]`; empty if it was committed without scores."""
        if self.scores and self.span == self.winner.scored:
            return self.scores[self.chosen]
        return self.committed_scores

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values.

        Returns:
            `text`, `ends`, `proposers` and `logprobs` (per member) of the committed span; fused `score` and
            `member_scores` of the winner; `library_text`, if any; `margins` per member; `candidates`, each with its
            text, end, proposers, scores and log-probabilities; and `chosen`, the index of the winner among them. Scores
            and log-probabilities are None if the choice needed none.
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
            "chosen": self.chosen,
            "candidates": candidates,
        }

    def _candidate_dict(self, index: int) -> dict[str, Any]:
        candidate, scores = self.candidates[index], self.scores[index] if self.scores else ()
        values = self.values[index] if self.values else ()
        return {
            "text": candidate.span.text,
            "ends": candidate.span.ends,
            "proposers": list(candidate.proposers),
            **({} if candidate.ahead is None else {"ahead": candidate.ahead.text, "ahead_ends": candidate.ahead.ends}),
            "score": self.fused[index] if self.fused else None,
            "member_scores": {score.member: value for score, value in zip(scores, values, strict=True)} or None,
            "logprobs": _logprobs(scores),
        }


def _logprobs(scores: tuple[Score, ...]) -> dict[str, list[float]] | None:
    return {score.member: list(score.logprobs) for score in scores} or None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A continuation of a prompt with its scores.

    Args:
        span: The continuation.
        scores: Score by member name.
        value: Fused value by the scoring rule and pool of the ensemble: lower is better.
    """

    span: Span
    scores: dict[str, Score]
    value: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts of prompt and answer.

    Args:
        prompt_tokens: Prompt tokens by member name, including the chat template.
        completion_tokens: Answer tokens by member name.
        rounds: Number of rounds.
        cached_tokens: Prompt tokens by member name that were not read, since an earlier request had read them.
        read_tokens: Tokens by member name that the model has read: the rest of the prompt, answer, candidates, guesses.
    """

    prompt_tokens: dict[str, int]
    completion_tokens: dict[str, int]
    rounds: int
    cached_tokens: dict[str, int] = field(default_factory=dict)
    read_tokens: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt_tokens": dict(self.prompt_tokens),
            "completion_tokens": dict(self.completion_tokens),
            "rounds": self.rounds,
            "cached_tokens": dict(self.cached_tokens),
            "read_tokens": dict(self.read_tokens),
        }

    def first(self) -> tuple[str, int, int]:
        """Name, prompt tokens and answer tokens of the first member, whose tokens the budget counts."""
        name = next(iter(self.prompt_tokens))
        return name, self.prompt_tokens[name], self.completion_tokens[name]
