"""What `Ensemble.stream` yields, in order: text as soon as it is safe, each round, then the end."""

from __future__ import annotations

from dataclasses import dataclass

from adafuse_core.rounds import Round, Usage


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """New text of the answer; the deltas joined are the whole answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class RoundDone:
    """A round was decided; its text may still be held back by a stop string that began in it."""

    round: Round


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event.

    Args:
        reason: `"stop"` (the members ended the answer, or a stop string was hit) or `"length"`.
        stop: The stop string that was hit, if one was.
        usage: Tokens of prompt and answer per member.
    """

    reason: str
    stop: str | None
    usage: Usage


Event = TextDelta | RoundDone | Finished
