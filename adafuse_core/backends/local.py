"""The backend for Hugging Face models in this process.

`base.py` has the contract; `adafuse_core.engine` avoids repeated forward passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from adafuse_core.backends.base import (
    MOST_BRANCHES,
    Abilities,
    Allowed,
    SessionTokens,
    TopTokens,
    Until,
    allows,
    freed,
    is_dead_end,
)
from adafuse_core.backends.quantization import quantization_name
from adafuse_core.engine.batching import Batcher, Closed, Orphaned
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.distributions import Distribution, gather, masked
from adafuse_core.engine.forward import Model
from adafuse_core.engine.lookup import Lookup
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.pass_costs import PassCosts
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.engine.store_choice import StoreChoice
from adafuse_core.errors import ContextOverflowError, MemberError, NonFiniteLogitsError
from adafuse_core.forks import renew_after_fork
from adafuse_core.text.ids import Ids

logger = logging.getLogger(__name__)

_SURE_MARGIN = 0.7  # from here on, the beginning of a draft is guessed without branches


class LocalBackend:
    """Drafts and scores with a causal language model of transformers.

    Args:
        model: The model.
        choice: Its KV store.
        name: Name of the member in the log.
        weights: Where its weights are from, for `Abilities`.
        max_cached_tokens: See `Batcher`.
    """

    def __init__(
        self,
        model: Model,
        choice: StoreChoice,
        *,
        name: str,
        weights: str | None = None,
        max_cached_tokens: int | None = None,
    ) -> None:
        self.model = model
        self._weights = weights
        self._choice = choice
        self._batcher = Batcher(choice.store, max_kv_tokens=choice.max_kv_tokens, max_cached_tokens=max_cached_tokens)
        self._forked = False
        renew_after_fork(self)
        log = logger.warning if choice.fallback else logger.info
        log("member %r uses KV store %s", name, choice)

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
        namespace: str = "",
    ) -> LocalSession:
        """See `Backend.open`."""
        if self._forked and self.model.device.type != "cpu":
            raise _lost(str(self.model.device))
        limit = self._batcher.max_kv_tokens
        if limit is not None and len(context) + SPARE_TOKENS >= limit:
            raise ContextOverflowError(
                f"the prompt has {len(context)} tokens and needs {SPARE_TOKENS} more for candidates; "
                f"the KV memory holds {limit}",
                hint="shorten the prompt, raise MemberConfig(max_kv_tokens=...), or free memory on the device",
            )
        memo = self._batcher.open(context, namespace)
        return LocalSession(
            self._batcher,
            memo,
            window,
            Lookup() if lookup else None,
            raise_if_cancelled,
            allowed,
            self.model.costs if self._choice.store.one_pass else None,
        )

    def after_fork(self) -> None:
        """Remember that this is another process than the one that loaded the model."""
        self._forked = True

    def take_turns(self, turns: Turns) -> None:
        """Share the turns of a device with other models."""
        self._batcher.turns = turns

    def tokens_held(self) -> int:
        """Tokens of running sessions whose keys and values are in memory."""
        return self._batcher.tokens_held()

    def tokens_cached(self) -> int:
        """Tokens of closed sessions whose keys and values are in memory."""
        return self._batcher.tokens_cached()

    def forget(self, namespace: str | None = None) -> None:
        """See `Backend.forget`."""
        self._batcher.forget(namespace)

    def abilities(self) -> Abilities:
        """See `Backend.abilities`."""
        limit = self._batcher.max_kv_tokens
        dtype = str(self.model.module.dtype).removeprefix("torch.")
        quantization = quantization_name(getattr(self.model.module.config, "quantization_config", None))
        return Abilities(
            vocab_size=self.model.vocab_size,
            dtype=", ".join(filter(None, [dtype, quantization and f"weights quantized with {quantization}"])),
            device=str(self.model.device),
            place=f"local:{self.model.device}",
            top=None,
            full_distribution=True,
            masks=True,
            weights=self._weights,
            cache=str(self._choice),
            max_kv_tokens=limit,
            max_context=None if limit is None else max(0, limit - SPARE_TOKENS),
        )

    def close(self) -> None:
        """Free the model. Running calls raise a `MemberError`."""
        self._batcher.shut()
        del self.model, self._choice


class LocalSession:
    """One growing context. Its memo is filled by passes that sessions of the same model share."""

    def __init__(
        self,
        batcher: Batcher,
        memo: Memo,
        window: int | None,
        lookup: Lookup | None,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None,
        costs: PassCosts | None,
    ) -> None:
        self._batcher = batcher
        self._costs = costs
        self._window = window
        self._memo = memo
        self._lookup = lookup
        self._raise_if_cancelled = raise_if_cancelled
        self._allowed = allowed
        self._closed = False
        self.branches = 1  # likeliest tokens that drafts ask for, to go on with each of them
        self._masked: dict[Ids, Distribution] = {}  # distributions under the mask, since the last commit

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """See `Session.draft`."""
        if 1 < top <= MOST_BRANCHES:  # rows that complete a word ask for one token
            self.branches = top
        steps: list[list[TopTokens]] = [[] for _ in contexts]
        written = list(contexts)
        live = list(range(len(contexts)))

        def needs_pass(row: int) -> bool:
            """Continue a row until the memo lacks a distribution; returns whether the row is unfinished."""
            while not self._is_dead_end(written[row]):
                distribution = self._distributions([(written[row], None)])[0]
                if distribution is None:
                    return True
                steps[row].append(TopTokens(*distribution.top(top)))
                if until(row, steps[row]) or len(steps[row]) >= max_new:
                    return False
                written[row] += (distribution.ids[0],)
            return False

        with self._batcher.call(self._memo):
            while live := [row for row in live if needs_pass(row)]:
                finished = [context for row, context in enumerate(written) if row not in live]
                self._compute([written[row] for row in live], [*guesses, *finished])
        return steps

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """See `Session.score`."""
        wanted = [
            (context + ids[:length], token)
            for context, ids in zip(contexts, continuations, strict=True)
            for length, token in enumerate(ids)
        ]
        with self._batcher.call(self._memo):
            found = self._distributions(wanted)
            while missing := [context for (context, _), each in zip(wanted, found, strict=True) if each is None]:
                self._compute(dict.fromkeys(missing), guesses, look_up=False)
                found = self._distributions(wanted)  # all of them: an eviction may have removed some
        rows = [(each, token) for each, (_, token) in zip(found, wanted, strict=True) if each is not None]
        values = iter(gather(rows))
        return [[next(values) for _ in ids] for ids in continuations]

    def commit(self, context: Ids) -> None:
        """See `Session.commit`."""
        self._masked.clear()
        try:
            self._batcher.commit(self._memo, context)
        except Closed:
            raise freed() from None

    def tokens(self) -> SessionTokens:
        """See `Session.tokens`."""
        return SessionTokens(read=self._memo.tokens_read, cached=self._memo.tokens_reused)

    def close(self) -> None:
        """Close the sequence. Only the first call counts: by the second one, its memory may serve another session."""
        if not self._closed:
            self._closed = True
            self._batcher.close(self._memo)

    def _distributions(self, wanted: Sequence[tuple[Ids, int | None]]) -> list[Distribution | None]:
        """The next-token distribution after each context, under the grammar's mask; None if no pass has computed it.

        Args:
            wanted: Contexts, and the token to be scored there, if any. A candidate can contain a token that the mask
                excludes, if the tokenizer normalises text or the token ends answers: such a token is scored with the
                unmasked distribution.
        """
        unmasked = [self._memo.get(context) for context, _ in wanted]
        if self._allowed is None:
            return unmasked
        masks = [self._mask(context, token, each) for (context, token), each in zip(wanted, unmasked, strict=True)]
        new = {
            context: (each, mask)
            for (context, _), each, mask in zip(wanted, unmasked, masks, strict=True)
            if each is not None and mask is not None and context not in self._masked
        }
        if new:
            self._masked |= zip(new, masked(list(new.values())), strict=True)
        return [
            each if mask is None else self._masked[context]
            for (context, _), each, mask in zip(wanted, unmasked, masks, strict=True)
        ]

    def _is_dead_end(self, context: Ids) -> bool:
        """Whether the grammar allows no token of the vocabulary after a context."""
        return self._allowed is not None and is_dead_end(self._allowed(context))

    def _mask(self, context: Ids, token: int | None, unmasked: Distribution | None) -> bytes | None:
        """The mask of a context; None if there is no distribution or no mask, or the mask excludes the token."""
        mask = None if unmasked is None or self._allowed is None else self._allowed(context)
        excluded = mask is not None and token is not None and not allows(mask, token)
        return None if excluded else mask

    def _compute(self, contexts: Iterable[Ids], guesses: Iterable[Ids], *, look_up: bool = True) -> None:
        """Compute the distributions of contexts, and of guesses in the same passes."""
        wanted = list(contexts)
        ahead = [*guesses, *self._looked_up(wanted)] if look_up else list(guesses)
        unknown = [context for context in ahead if self._memo.get(context) is None]
        unknown += self._next_words(ahead)
        request = ReadRequest(self._memo, wanted + unknown)
        try:
            self._raise_if_cancelled()
            self._batcher.read(request, self._raise_if_cancelled)
        except FloatingPointError as error:
            raise NonFiniteLogitsError(
                f"the model returned {error}",
                hint="load it in another dtype (bfloat16 or float32), or check its weights",
            ) from error
        except Closed:
            raise freed() from None
        except Orphaned:
            raise _orphaned() from None

    def _next_words(self, contexts: Iterable[Ids]) -> list[Ids]:
        """Guesses: how drafts begin after contexts of which one will probably be committed, as many as are cheap."""
        if self._lookup is None or self._costs is None:
            return []
        found: dict[Ids, None] = {}
        left = self._costs.affordable_guesses()
        for context in dict.fromkeys(contexts):
            new = [each for each in self._beginnings(context) if each not in found]
            if len(new) > 2 * left:  # a few of the branches would save no pass
                break
            found |= dict.fromkeys(new)
            left -= len(new)
        return list(found)

    def _beginnings(self, context: Ids) -> Iterator[Ids]:
        """The first unknown contexts of a draft and its branches; none if the distribution itself is unknown."""
        known = self._memo.get(context)
        if known is None:
            return
        mask = self._mask(context, None, known)
        likeliest = zip(known.ids, known.logprobs, strict=True)
        allowed = [(token, math.exp(value)) for token, value in likeliest if mask is None or allows(mask, token)]
        sure = len(allowed) < 2 or allowed[0][1] - allowed[1][1] >= _SURE_MARGIN
        for token, _ in allowed[: 1 if sure else self.branches]:
            further = (*context, token)
            while (known := self._memo.get(further)) is not None:
                further += (known.ids[0],)
            if len(further) <= (self._window or len(further)):
                yield further

    def _looked_up(self, contexts: Iterable[Ids]) -> list[Ids]:
        if self._lookup is None:
            return []
        committed = self._memo.ids
        drafts = [context[len(committed) :] for context in contexts if context[: len(committed)] == committed]
        guesses = ((draft, self._lookup.guess(committed, draft)) for draft in drafts)
        return [(committed + draft + guess)[: self._window] for draft, guess in guesses if guess]


def _orphaned() -> MemberError:
    return MemberError(
        "this request was started before the process was forked, and belongs to the parent process",
        hint="start a new request in this process",
        retryable=False,
    )


def _lost(device: str) -> MemberError:
    return MemberError(
        f"its model was loaded on {device} before this process was forked, and a forked process can't use that device",
        hint="load models after the fork, or start processes with multiprocessing's 'spawn'",
        retryable=False,
    )
