"""The seam between member and model: token ids and log-probabilities.

A backend is a pure function of token contexts. Contexts are given whole, and what a backend remembers of them is only
speed, so any call may be repeated, on another process or machine, with the same answer.

Any call may come for several members and sessions at the same time. Only `open_backend`, `draft`, `score` and the
`close` of a backend may do I/O: the others come for one member after the other, and return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from adafuse_core.backends.locations import Location
from adafuse_core.member_config import MemberConfig
from adafuse_core.text.ids import Ids


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest tokens of the next-token distribution at one place of a greedy continuation.

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
        dtype: Of the weights, for people.
        device: Where the model runs, for people.
        place: What it computes on. Members of one place take turns, others work at the same time; so `cuda:0` of this
            machine and `cuda:0` of another one have different names here.
        top: Most of the likeliest tokens that it reports at each step; None for any number.
        full_distribution: Whether it can report all tokens of a step, `vocab_size` of them.
        masks: Whether it honours `allowed`, which grammars need.
        cache: How it remembers contexts, and why so, for people.
        max_kv_tokens: Most tokens it holds in memory, over all sequences; None if unbounded.
        max_context: Most tokens of one context; None if unbounded.
    """

    vocab_size: int
    dtype: str
    device: str
    place: str
    top: int | None
    full_distribution: bool
    masks: bool
    cache: str
    max_kv_tokens: int | None = None
    max_context: int | None = None


Until = Callable[[int, list[TopTokens]], bool]
Allowed = Callable[[Ids], bytes | None]


class Session(Protocol):
    """One growing context of a backend. Used by one thread at a time, not always the same one."""

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """Continue each context greedily.

        Args:
            contexts: Token ids, each non-empty.
            max_new: Most distributions to read per context.
            top: How many of the likeliest tokens to report at each step; within `Abilities.top`.
            until: Called with row number and the row's steps after each new step; True ends the row.
                It may raise to abandon the call. Steps that were computed beyond the end are dropped.
            guesses: Contexts that are likely to be asked for soon, worth computing in the same pass; or ignored.

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
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
    ) -> Session:
        """A session that begins with a context. Nothing is computed yet.

        Args:
            context: Token ids, non-empty.
            window: Most tokens that a context of the session may have; None if unbounded.
            lookup: Whether to guess ahead by looking up the last tokens in the context.
            raise_if_cancelled: Called before each pass and, several times a second, while waiting for one.
            allowed: Tokens that may follow a context, one bit for each, lowest first; None for all. Every
                distribution of the session is that of the model on condition that the token is one of them.
                Given only to backends with `Abilities.masks`: it is called between two tokens, in this process.

        Raises:
            ContextOverflowError: Memory can never hold so long a context.
        """

    def abilities(self) -> Abilities:
        """Limits and abilities, the same at every call."""

    def close(self) -> None:
        """Free the model. Later calls raise."""


Shared = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What a member's files tell without any weights. They are read on this machine, whatever the backend."""

    location: Location  # of configuration and weights
    adapter: Location | None = None  # of a PEFT adapter on top of them
    architecture: Any  # the model's transformers config
    tokenizer: Any  # the member's; a served model must have the same


class Opener(Protocol):
    """One kind of backend: a frozen dataclass whose fields are the `backend_options` of a `MemberConfig`.

    It is made with the config, to check them; so its module should import what is heavy only in `open_backend`.
    """

    honours: ClassVar[frozenset[str]]  # of `RUN_OPTIONS`; a config that sets another one is refused

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> Backend:
        """Load the model, or find it where it is served, and make sure that it is fit for an ensemble.

        Args:
            config: The member's.
            files: What is known of the model already.
            shared: `shared(place, make)` is what the first such call in this process made: what models of one place
                have in common, such as the turns on a device.

        Raises:
            ModelLoadError: The model can't be had, or is not fit.
        """
