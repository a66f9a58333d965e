"""What is recorded of one answer of one system: its text, what it is worth, and what it cost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from adafuse_core.checks import field_names
from adafuse_core.generation import Generation
from adafuse_core.rounds import Round
from adafuse_core.text.words import WhitespaceWords

_WORDS = WhitespaceWords()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of one system to one question, as plain JSON values.

    Args:
        place: Position of the question in the data.
        label: The question's `id`.
        system: Name of the system.
        text: The generated text; "" if the question was refused.
        metrics: Score of this answer by metric, 0..100.
        seconds: Elapsed time.
        cpu_seconds: CPU time of the process.
        words: Words of the text.
        rounds: Number of rounds.
        round_words: Number of rounds by the number of words they committed, as text; `"0"` has rounds that only end.
        margin_rounds: Number of rounds in which a member reported a margin.
        confident_rounds: Number of these in which all margins at the first word are at least τ; None without a τ.
        reason: `"stop"`, `"length"` or `"tool_calls"`; `"refused"` if a member had no room for the prompt.
        prompt_tokens: Tokens of the prompt, by member.
        completion_tokens: Tokens of the answer, by member.
        cached_tokens: Tokens of the prompt that were in memory, by member.
        read_tokens: Tokens that a member's model has read, by member.
        error: Why the question was refused.
        trace: The rounds (`Round.to_dict()`), if they are recorded.
    """

    place: int
    label: str
    system: str
    text: str
    metrics: Mapping[str, float]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    words: int = 0
    rounds: int = 0
    round_words: Mapping[str, int] = field(default_factory=dict)
    margin_rounds: int = 0
    confident_rounds: int | None = None
    reason: str = "stop"
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)
    completion_tokens: Mapping[str, int] = field(default_factory=dict)
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    read_tokens: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None
    trace: Sequence[Mapping[str, Any]] | None = None

    @property
    def key(self) -> tuple[int, str]:
        """Question and system."""
        return self.place, self.system

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The answer from `to_dict`; unknown fields raise `TypeError`."""
        unknown = set(values) - set(field_names(cls))
        if unknown:
            raise TypeError(f"unknown fields of an answer: {sorted(unknown)}")
        return cls(**values)


def cost_of(generation: Generation, tau: float | None) -> dict[str, Any]:
    """The fields of an `Answer` that count words, rounds and tokens.

    Args:
        generation: The answer.
        tau: The threshold of confidence; None if the strategy has none.
    """
    usage = generation.usage
    first_margins = [_first_margins(played) for played in generation.rounds]
    confident = [tau is not None and min(margins) >= tau for margins in first_margins if margins]
    counted = Counter(str(count_words(played.span.text)) for played in generation.rounds)
    return {
        "words": count_words(generation.text),
        "rounds": usage.rounds,
        "round_words": {count: counted[count] for count in sorted(counted, key=int)},
        "margin_rounds": len(confident),
        "confident_rounds": None if tau is None else sum(confident),
        "reason": generation.reason,
        "prompt_tokens": dict(usage.prompt_tokens),
        "completion_tokens": dict(usage.completion_tokens),
        "cached_tokens": dict(usage.cached_tokens),
        "read_tokens": dict(usage.read_tokens),
    }


def count_words(text: str) -> int:
    """Number of words of a text, by the rule of the decoder."""
    return len(_WORDS.ends(text, final=True)) if text.strip() else 0


def _first_margins(played: Round) -> list[float]:
    return [draft.margins[0] for draft in played.drafts if draft.margins]
