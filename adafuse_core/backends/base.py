"""The contract between a member and its model: token ids in, log-probabilities out.

A backend is a pure function of token contexts. Each call gets whole contexts, and everything that a backend caches
only saves time. So any call may be repeated, in another process or on another machine, with the same result.

Calls for different members and sessions may come at the same time. Only `open_backend`, `draft`, `score` and
`Backend.close` may do I/O; all other methods are called for one member after the other and must return at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from adafuse_core.backends.locations import Location
from adafuse_core.errors import MemberError
from adafuse_core.member_config import MemberConfig
from adafuse_core.text.ids import Ids


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest tokens at one step of a greedy continuation.

    Args:
        ids: Token ids, likeliest first; equal logits in order of id. `ids[0]` is the greedy token.
        logprobs: Their natural log-probabilities.
    """

    ids: Ids
    logprobs: tuple[float, ...]

    @property
    def margin(self) -> float:
        """Top-1 minus top-2 probability (Δ in the paper); 1 if there is one token."""
        if len(self.logprobs) < 2:
            return 1.0
        return math.exp(self.logprobs[0]) - math.exp(self.logprobs[1])


@dataclass(frozen=True, slots=True)
class SessionTokens:
    """Tokens of one session.

    Args:
        read: Tokens that the model has read for it: prompt, answer, candidates and guesses.
        cached: First tokens of the context that were not read, since an earlier session had read them.
    """

    read: int = 0
    cached: int = 0


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a backend is and supports.

    Args:
        vocab_size: Number of token ids that the model can read.
        dtype: Data type of the weights, to be shown to users.
        device: Where the model runs, to be shown to users.
        place: The hardware it runs on. Members with the same place run in turn, others at the same time; so `cuda:0`
            of this machine and `cuda:0` of another machine need different names.
        top: Most top tokens that it can report per step; None for no limit.
        full_distribution: Whether it can report all `vocab_size` tokens of a step.
        masks: Whether it supports `allowed`, which grammars need.
        weights: Where the weights are from, to be shown to users.
        cache: How it caches contexts and why, to be shown to users.
        max_kv_tokens: Most tokens it keeps in memory, over all sequences; None for no bound.
        max_context: Most tokens of one context; None for no bound.
    """

    vocab_size: int
    dtype: str
    device: str
    place: str
    top: int | None
    full_distribution: bool
    masks: bool
    cache: str
    weights: str | None = None
    max_kv_tokens: int | None = None
    max_context: int | None = None


Until = Callable[[int, list[TopTokens]], bool]
Allowed = Callable[[Ids], bytes | None]

MOST_BRANCHES = 7  # drafts that ask for more of the likeliest tokens want a distribution, not branches


def allows(mask: bytes, token: int) -> bool:
    """Whether a mask of `Allowed` allows a token."""
    return bool(mask[token >> 3] >> (token & 7) & 1)


def is_dead_end(mask: bytes | None) -> bool:
    """Whether a mask of `Allowed` allows no token of the vocabulary."""
    return mask is not None and not mask.strip(b"\0")


def freed() -> MemberError:
    """The error of a call whose model is freed meanwhile."""
    return MemberError(
        "its model was freed by close() while it was in use", hint="close when all streams are done", retryable=False
    )


class Session(Protocol):
    """One growing context of a backend. Used by one thread at a time, which may change between calls."""

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """Continue each context greedily.

        Args:
            contexts: Token ids, each non-empty.
            max_new: Most steps per context.
            top: Number of top tokens to report per step, within `Abilities.top`.
            until: Called after each step with the row number and the row's steps so far; True ends the row.
                It may raise to abort the call. Steps computed beyond the end are dropped.
            guesses: Contexts that later calls are likely to need. May be computed in the same pass, or ignored.

        Returns:
            The steps of each context; a row's greedy tokens are `[step.ids[0] for step in steps]`. A row ends without
            a True of `until` where the grammar allows no token of the vocabulary.
        """

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """Natural log-probability of each continuation token, given its context and the continuation before it."""

    def commit(self, context: Ids) -> None:
        """Make this the session's context. Keeps what was computed for it, evicts other branches."""

    def tokens(self) -> SessionTokens:
        """Tokens that were read and reused so far; also after `close`."""

    def close(self) -> None:
        """End the session. Its memory may serve later sessions with a common beginning. May be called twice."""


class Backend(Protocol):
    """A model that reads token ids. Any method may be called by several threads at once."""

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
        namespace: str = "",
    ) -> Session:
        """A session that starts with a context. Computes nothing yet.

        Args:
            context: Token ids, non-empty.
            window: Most tokens of a context in this session; None for no bound.
            lookup: Whether to guess next tokens, such as by looking up the last n-gram in the context.
            raise_if_cancelled: Called before each pass and, several times a second, while waiting for a pass.
            allowed: Returns the mask of tokens that may follow a context, one bit per token, lowest bit first; None
                for no mask. Every distribution of the session is the model's, renormalized over the allowed tokens.
                Called between two tokens, in this process; given only to backends with `Abilities.masks`.
            namespace: Sessions share what was computed for a common beginning only within a namespace.

        Raises:
            ContextOverflowError: The context can never fit into the memory.
        """

    def abilities(self) -> Abilities:
        """What the backend is and supports; the same at every call."""

    def forget(self, namespace: str | None = None) -> None:
        """Free what is kept of closed sessions, of one namespace or of all."""

    def close(self) -> None:
        """Free the model. Later calls raise."""


Shared = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What is known of a model from its files, without weights. Every backend reads the files on this machine."""

    location: Location  # configuration and weights
    adapter: Location | None = None  # a PEFT adapter for these weights
    architecture: Any  # the model's transformers config
    tokenizer: Any  # the member's tokenizer; a model on a server must use the same tokenizer
    # Finds the files of a config in another process, perhaps on another machine; without the tokenizer.
    reread: Callable[[MemberConfig], ModelFiles]


class Opener(Protocol):
    """One kind of backend: a frozen dataclass whose fields are the `backend_options` of a `MemberConfig`.

    It is created with the config, to check the options; so its module should import heavy libraries only in
    `open_backend`.
    """

    honours: ClassVar[frozenset[str]]  # the supported `RUN_OPTIONS`; a config that sets another one is refused

    def open_backend(self, config: MemberConfig, files: ModelFiles, shared: Shared) -> Backend:
        """Load the model, or connect to the server that has it, and check that it is usable.

        Args:
            config: The member's config.
            files: What is known of the model already.
            shared: `shared(place, make)` returns an object that all models of a place share, such as the scheduler
                of a device; the first call in this process creates it.

        Raises:
            ModelLoadError: The model can't be loaded, or is not usable.
        """
