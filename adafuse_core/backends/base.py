"""The seam between member and model: token ids and log-probabilities.

A backend is a pure function of token contexts. What it remembers is only speed, so any call may be
repeated, on another process or machine, with the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adafuse_core.text.tokens import Ids


@dataclass(frozen=True, slots=True)
class Step:
    """The next-token distribution at one place of a greedy continuation: its likeliest tokens.

    Args:
        ids: Token ids, likeliest first; equal logits go by the lower id. `ids[0]` is written next.
        logprobs: Their natural log-probabilities.
    """

    ids: Ids
    logprobs: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a backend is and can do.

    Args:
        vocab_size: Token ids that the model can read.
        dtype: Of the weights.
        device: Where the model's input goes.
        cache: How it remembers contexts, and why so, for people.
    """

    vocab_size: int
    dtype: str
    device: str
    cache: str


Until = Callable[[int, list[Step]], bool]


class Backend(Protocol):
    """A model behind token ids. All calls may come from several threads at once."""

    def draft(self, contexts: Sequence[Ids], max_new: int, top: int, until: Until) -> list[list[Step]]:
        """Continue each context greedily.

        Args:
            contexts: Token ids, each non-empty.
            max_new: Most distributions to read per context.
            top: How many of the likeliest tokens to report at each step.
            until: Called with row number and the row's steps after each new step; True ends the row.
                It may raise to abandon the call.

        Returns:
            Per context its steps; a row's greedy tokens are `[step.ids[0] for step in steps]`.
        """

    def score(self, context: Ids, continuations: Sequence[Ids]) -> list[list[float]]:
        """Natural log-probability of each token of each continuation, given context and those before it."""

    def remember(self, context: Ids) -> None:
        """Keep what is computed for this very context until it is forgotten as often as remembered."""

    def forget(self, context: Ids) -> None:
        """Take back one `remember`."""

    def check(self) -> Abilities:
        """Limits and abilities."""

    def close(self) -> None:
        """Free the model. Later calls raise."""
