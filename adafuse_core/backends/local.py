"""A Hugging Face model in this process.

The contract is in `base.py`; how forward passes are saved is in `adafuse_core.engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from adafuse_core.backends.base import Abilities, Allowed, TopTokens, Until
from adafuse_core.engine.batching import Batcher, Closed, Orphaned
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.distributions import Distribution, gather, masked
from adafuse_core.engine.forward import Model
from adafuse_core.engine.lookup import Lookup
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.engine.store_choice import StoreChoice
from adafuse_core.errors import ContextOverflowError, MemberError, NonFiniteLogitsError
from adafuse_core.forks import renew_after_fork
from adafuse_core.text.ids import Ids

logger = logging.getLogger(__name__)


class LocalBackend:
    """Drafts and scores on a causal language model of transformers.

    Args:
        model: The loaded model.
        choice: Its KV memory, and why that one.
        name: The member's name, for the log.
    """

    def __init__(self, model: Model, choice: StoreChoice, *, name: str) -> None:
        self.model = model
        self._choice = choice
        self._batcher = Batcher(choice.store, max_kv_tokens=choice.max_kv_tokens)
        self._forked = False
        renew_after_fork(self)
        log = logger.warning if choice.fallback else logger.info
        log("member %r runs with KV memory %s", name, choice)

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
    ) -> LocalSession:
        """A session that begins with a context; see `Backend.open`."""
        if self._forked and self.model.device.type != "cpu":
            raise _lost(str(self.model.device))
        limit = self._batcher.max_kv_tokens
        if limit is not None and len(context) + SPARE_TOKENS >= limit:
            raise ContextOverflowError(
                f"the prompt has {len(context)} tokens and needs {SPARE_TOKENS} more to work with; "
                f"the KV memory holds {limit}",
                hint="shorten the prompt, raise MemberConfig(max_kv_tokens=...), or free memory on the device",
            )
        return LocalSession(self._batcher, context, window, Lookup() if lookup else None, raise_if_cancelled, allowed)

    def after_fork(self) -> None:
        """Remember that this is another process than the one that loaded the model."""
        self._forked = True

    def take_turns(self, turns: Turns) -> None:
        """Share the turns of a device with its other models."""
        self._batcher.turns = turns

    def tokens_held(self) -> int:
        """Tokens whose keys and values are in memory."""
        return self._batcher.tokens_held()

    def abilities(self) -> Abilities:
        """Limits and abilities."""
        limit = self._batcher.max_kv_tokens
        return Abilities(
            vocab_size=self.model.vocab_size,
            dtype=str(self.model.module.dtype).removeprefix("torch."),
            device=str(self.model.device),
            place=f"local:{self.model.device}",
            top=None,
            full_distribution=True,
            masks=True,
            cache=str(self._choice),
            max_kv_tokens=limit,
            max_context=None if limit is None else max(0, limit - SPARE_TOKENS),
        )

    def close(self) -> None:
        """Free the model. What is still running fails with an error that says so."""
        self._batcher.shut()
        del self.model, self._choice


class LocalSession:
    """One growing context; its memo is filled by passes that other sessions share."""

    def __init__(
        self,
        batcher: Batcher,
        context: Ids,
        window: int | None,
        lookup: Lookup | None,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None,
    ) -> None:
        self._batcher = batcher
        self._window = window
        self._memo = batcher.open(context)
        self._lookup = lookup
        self._raise_if_cancelled = raise_if_cancelled
        self._allowed = allowed
        self._masked: dict[Ids, Distribution] = {}  # of this round, on condition of what is allowed

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """Continue each context greedily; see `Session.draft`."""
        steps: list[list[TopTokens]] = [[] for _ in contexts]
        written = list(contexts)
        live = list(range(len(contexts)))
        with self._batcher.call(self._memo):
            while True:
                live = [row for row in live if self._go_on(row, written, steps, max_new, top, until)]
                if not live:
                    return steps
                self._compute([written[row] for row in live], guesses)
                guesses = ()

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """Log-probability of each token of each continuation; see `Session.score`."""
        wants = [
            (context + ids[:length], token)
            for context, ids in zip(contexts, continuations, strict=True)
            for length, token in enumerate(ids)
        ]
        with self._batcher.call(self._memo):
            known = self._known(wants)
            while missing := [place for (place, _), row in zip(wants, known, strict=True) if row is None]:
                self._compute(dict.fromkeys(missing), guesses, look_up=False)  # what gave way is read again
                known = self._known(wants)
        rows = [(row, token) for row, (_, token) in zip(known, wants, strict=True) if row is not None]
        values = iter(gather(rows))
        return [[next(values) for _ in ids] for ids in continuations]

    def commit(self, context: Ids) -> None:
        """Go on from this context."""
        self._masked.clear()
        try:
            self._batcher.commit(self._memo, context)
        except Closed:
            raise _freed() from None

    def close(self) -> None:
        """Free the memory."""
        self._batcher.close(self._memo)

    def _go_on(
        self, row: int, written: list[Ids], steps: list[list[TopTokens]], max_new: int, top: int, until: Until
    ) -> bool:
        """Continue a row as far as the memo goes; whether it wants more."""
        while (known := self._known([(written[row], None)])[0]) is not None:
            steps[row].append(TopTokens(*known.top(top)))
            if until(row, steps[row]) or len(steps[row]) >= max_new:
                return False
            written[row] += (known.ids[0],)
        return True

    def _known(self, wants: Sequence[tuple[Ids, int | None]]) -> list[Distribution | None]:
        """The next-token distribution after each context under the grammar's mask; None where no pass has computed it.

        Args:
            wants: Contexts, and the token that is to be scored there, if there is one. A candidate can contain a token
                that the mask excludes, where a tokenizer normalises text or the token ends answers: such a token is
                scored with the unmasked distribution.
        """
        plain = [self._memo.known(context) for context, _ in wants]
        if self._allowed is None:
            return plain
        masks = [self._mask(context, token, known) for (context, token), known in zip(wants, plain, strict=True)]
        new = {
            context: (known, mask)
            for (context, _), known, mask in zip(wants, plain, masks, strict=True)
            if known is not None and mask is not None and context not in self._masked
        }
        if new:
            self._masked |= zip(new, _masked_known(list(new.values())), strict=True)
        return [
            known if mask is None else self._masked[context]
            for (context, _), known, mask in zip(wants, plain, masks, strict=True)
        ]

    def _mask(self, context: Ids, token: int | None, known: Distribution | None) -> bytes | None:
        """The mask of a context; None where nothing is known, there is no mask, or it excludes the token."""
        mask = None if known is None or self._allowed is None else self._allowed(context)
        excluded = mask is not None and token is not None and not mask[token >> 3] >> (token & 7) & 1
        return None if excluded else mask

    def _compute(self, contexts: Iterable[Ids], guesses: Iterable[Ids], *, look_up: bool = True) -> None:
        """Have contexts computed, and guesses with them."""
        wanted = list(contexts)
        ahead = [*guesses, *self._looked_up(wanted)] if look_up else list(guesses)
        unknown = [context for context in ahead if self._memo.known(context) is None]
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
            raise _freed() from None
        except Orphaned:
            raise _orphaned() from None

    def _looked_up(self, contexts: Iterable[Ids]) -> list[Ids]:
        if self._lookup is None:
            return []
        committed = self._memo.ids
        beyond = [context[len(committed) :] for context in contexts if context[: len(committed)] == committed]
        guesses = ((more, self._lookup.guess(committed, more)) for more in beyond)
        return [(committed + more + guess)[: self._window] for more, guess in guesses if guess]


def _masked_known(known: Sequence[tuple[Distribution, bytes]]) -> list[Distribution]:
    try:
        return masked(known)
    except ValueError as error:
        raise MemberError(
            "its vocabulary has no token for what the grammar asks for",
            hint="leave this member out, or ask for characters that its tokenizer can write",
            retryable=False,
        ) from error


def _freed() -> MemberError:
    return MemberError(
        "its model was freed by close() while it was in use", hint="close when all streams are done", retryable=False
    )


def _orphaned() -> MemberError:
    return MemberError(
        "this request began before the process was forked, and goes on in the parent",
        hint="begin it again in this process",
        retryable=False,
    )


def _lost(device: str) -> MemberError:
    return MemberError(
        f"its model was loaded on {device} before this process was forked, and a forked process can't use that device",
        hint="load models after the fork, or start processes with multiprocessing's 'spawn'",
        retryable=False,
    )
