"""The seam between member and model: token ids and log-probabilities.

A backend is a pure function of token contexts. What it remembers of a sequence is only speed, so any call may be
repeated, on another process or machine, with the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from adafuse_core.engine.device_turns import Turns
from adafuse_core.text.ids import Ids


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
        max_kv_tokens: Most tokens it holds in memory, over all sequences; None if unbounded.
        max_context: Most tokens of one context; None if unbounded.
    """

    vocab_size: int
    dtype: str
    device: str
    cache: str
    max_kv_tokens: int | None = None
    max_context: int | None = None


Until = Callable[[int, list[Step]], bool]
Allowed = Callable[[Ids], bytes | None]


class Session(Protocol):
    """One growing context of a backend. Used by one thread at a time."""

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[Step]]:
        """Continue each context greedily.

        Args:
            contexts: Token ids, each non-empty.
            max_new: Most distributions to read per context.
            top: How many of the likeliest tokens to report at each step.
            until: Called with row number and the row's steps after each new step; True ends the row.
                It may raise to abandon the call.
            guesses: Contexts that are likely to be asked for soon, worth computing in the same pass.

        Returns:
            Per context its steps; a row's greedy tokens are `[step.ids[0] for step in steps]`.
        """

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """Natural log-probability of each token of each continuation, given its context and those before it."""

    def commit(self, context: Ids) -> None:
        """Go on from this context: what is computed for it is kept, what led elsewhere is dropped."""

    def close(self) -> None:
        """Free the memory. May be called twice."""


class Backend(Protocol):
    """A model behind token ids. All calls may come from several threads at once."""

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        check: Callable[[], None],
        allowed: Allowed | None = None,
    ) -> Session:
        """A session that begins with a context. Nothing is computed yet.

        Args:
            context: Token ids, non-empty.
            window: Most tokens that a context of the session may have; None if unbounded.
            lookup: Whether to guess ahead by looking up the last tokens in the context.
            check: Called before each pass and while waiting for one; raises to give up.
            allowed: Tokens that may follow a context, one bit for each, lowest first; None for all. Every
                distribution of the session is that of the model on condition that the token is one of them.

        Raises:
            ContextOverflowError: Memory can never hold so long a context.
        """

    def take_turns(self, turns: Turns) -> None:
        """Share the turns of a device with its other models."""

    def check(self) -> Abilities:
        """Limits and abilities."""

    def close(self) -> None:
        """Free the model. Later calls raise."""
