"""A backend whose model runs in another process, perhaps on another machine. It gives the same text as a local one.

`host.py` is the other side, a `Channel` connects them, such as that of `ray.py`. The functions that a session
gets can't be called from there. So the host drafts to the likely end of a word, and `until` is called here, for each of
the steps that came back. Masks are sent for all contexts whose tokens are known or can be predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from adafuse_core.backends.base import (
    MOST_BRANCHES,
    Abilities,
    Allowed,
    SessionTokens,
    TopTokens,
    Until,
    allows,
    is_dead_end,
)
from adafuse_core.backends.remote.messages import (
    DraftCall,
    PackedIds,
    PackedMasks,
    Reply,
    ScoreCall,
    SessionCall,
    packed,
    unpacked_logprobs,
)
from adafuse_core.backends.remote.words import Ahead, Certainty, words_to_end
from adafuse_core.errors import ContextOverflowError
from adafuse_core.text.ids import Ids

_REPORTED = (
    MOST_BRANCHES + 1
)  # likeliest tokens of every step: the local backend has them anyway, and a later draft may need them
_MOST_KEPT = 64  # steps with more tokens are not kept


class Channel(Protocol):
    """Carries calls to a host. Any method may be called by several threads at once."""

    def ask(self, method: str, call: SessionCall, check: Callable[[], None]) -> Reply:
        """The host's reply to a call, which may reach the host more than once.

        Args:
            method: Name of a method of `Host`.
            call: Its argument.
            check: Called several times a second while waiting. If it raises, the host's call is cancelled.

        Raises:
            MemberError: The host has not answered in time, or can't be reached.
        """

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method of the host without waiting. The message may be lost."""

    def close(self) -> None:
        """End the host. Later calls raise."""


class RemoteBackend:
    """A backend at the other end of a channel.

    Args:
        channel: Connects to the host.
        abilities: Abilities of the host's backend, as they are shown here.
    """

    def __init__(self, channel: Channel, abilities: Abilities) -> None:
        self._channel = channel
        self._abilities = abilities

    def open(
        self,
        context: Ids,
        *,
        window: int | None,
        lookup: bool,
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None = None,
        namespace: str = "",
    ) -> RemoteSession:
        """See `Backend.open`."""
        limit = self._abilities.max_context
        if limit is not None and len(context) >= limit:
            raise ContextOverflowError(
                f"the prompt has {len(context)} tokens; the KV memory has room for contexts of {limit}",
                hint="shorten the prompt, raise MemberConfig(max_kv_tokens=...), or free memory on the device",
            )
        options = {"window": window, "lookup": lookup, "namespace": namespace, "masked": allowed is not None}
        return RemoteSession(self._channel, context, options, raise_if_cancelled, allowed)

    def abilities(self) -> Abilities:
        """See `Backend.abilities`."""
        return self._abilities

    def forget(self, namespace: str | None = None) -> None:
        """See `Backend.forget`."""
        self._channel.tell("forget", namespace)

    def close(self) -> None:
        """End the process of the model. Running calls raise a `MemberError`."""
        self._channel.close()


class RemoteSession:
    """One growing context.

    What the host has reported since the last commit is kept: the distributions that count, and with a grammar also
    distributions without their masks, which predict the next tokens.
    """

    def __init__(
        self,
        channel: Channel,
        context: Ids,
        options: Mapping[str, Any],
        raise_if_cancelled: Callable[[], None],
        allowed: Allowed | None,
    ) -> None:
        self._channel = channel
        self._context = context
        self._options = options
        self._raise_if_cancelled = raise_if_cancelled
        self._allowed = allowed
        self._name = uuid4().hex
        self._calls = count()
        self._known = _Steps()
        self._unmasked = _Steps()
        self._ahead = Ahead()
        self._certainty = Certainty()
        self._branches = 1  # likeliest tokens that drafts ask for
        self._tokens = self._earlier = SessionTokens()  # in all, and before the host opened its current session
        self._open = False  # whether the host has the session

    def draft(
        self, contexts: Sequence[Ids], max_new: int, top: int, until: Until, guesses: Sequence[Ids] = ()
    ) -> list[list[TopTokens]]:
        """See `Session.draft`."""
        if 1 < top <= MOST_BRANCHES:  # rows that complete a word ask for one token
            self._branches = top
        steps: list[list[TopTokens]] = [[] for _ in contexts]
        written = list(contexts)

        def needs_call(row: int) -> bool:
            """Continue a row until a distribution is unknown; returns whether the row is unfinished."""
            while not self._is_dead_end(written[row]):
                step = self._step(written[row], top)
                if step is None:
                    return True
                steps[row].append(step)
                ended = until(row, steps[row])
                if len(steps[row]) == 1 and 1 < top <= MOST_BRANCHES:
                    self._certainty.learn(step, ended=ended)
                if ended or len(steps[row]) >= max_new:
                    return False
                written[row] += step.ids[:1]
            return False

        live = [row for row in range(len(contexts)) if needs_call(row)]
        while live:
            lengths = [len(steps[row]) for row in live]
            words = words_to_end(max(lengths))
            most = min(self._ahead.steps(words), max_new - min(lengths))
            asked = {written[row]: top == 1 or bool(steps[row]) for row in live}
            if not min(lengths):  # the host drafts these branches in the passes of the call
                pairs = zip(contexts, steps, strict=True)
                asked |= {context: False for context, row in pairs if self._will_branch(context, row, top)}
            computed = self._ask_for_steps(asked, top, most, words, guesses)
            asking, live = live, [row for row in live if needs_call(row)]
            if top == 1 and not live:
                used = max(len(steps[row]) for row in asking) - max(lengths)
                self._ahead.learn(computed, used, words)
        return steps

    def score(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], guesses: Sequence[Ids] = ()
    ) -> list[list[float]]:
        """See `Session.score`."""
        if not any(continuations):
            return [[] for _ in continuations]
        pairs = zip(contexts, continuations, strict=True)
        masks = self._masks(context + ids[:length] for context, ids in pairs for length in range(len(ids)))
        reply = self._ask(
            "score",
            ScoreCall,
            contexts=PackedIds.of(contexts, self._context),
            continuations=PackedIds.of(continuations),
            masks=PackedMasks.of(masks, self._context),
            guesses=PackedIds.of(guesses, self._context),
        )
        assert reply.logprobs is not None
        return unpacked_logprobs(reply.logprobs, map(len, continuations))

    def commit(self, context: Ids) -> None:
        """See `Session.commit`. The host is told with the next call."""
        self._context = context
        self._known.keep(context)
        self._unmasked.keep(context)

    def tokens(self) -> SessionTokens:
        """See `Session.tokens`."""
        return self._tokens

    def close(self) -> None:
        """See `Session.close`."""
        if self._open:
            self._open = False
            self._channel.tell("end", self._call(SessionCall))

    def _will_branch(self, context: Ids, steps: Sequence[TopTokens], top: int) -> bool:
        """Whether a draft has ended with an uncertain step, whose branches are still to be drafted."""
        if not 1 < top <= MOST_BRANCHES or len(steps) != 1 or steps[0].margin >= self._certainty.bound:
            return False
        return any(self._step((*context, token), 1) is None for token in steps[0].ids)

    def _step(self, context: Ids, top: int) -> TopTokens | None:
        """The likeliest tokens after a context; None if the host has not reported them."""
        step = self._known.get(context, top)
        if step is None and (unmasked := self._unmasked.get(context, top)) is not None:
            return unmasked if self._mask(context) is None else None
        return step

    def _is_dead_end(self, context: Ids) -> bool:
        """Whether the grammar allows no token of the vocabulary after a context."""
        return is_dead_end(self._mask(context))

    def _mask(self, context: Ids) -> bytes | None:
        return None if self._allowed is None else self._allowed(context)

    def _masks(self, contexts: Iterable[Ids]) -> dict[Ids, bytes]:
        """The masks of contexts, without those that have none."""
        if self._allowed is None:
            return {}
        found = ((context, self._allowed(context)) for context in dict.fromkeys(contexts))
        return {context: mask for context, mask in found if mask is not None}

    def _predicted(self, context: Ids) -> list[Ids]:
        """A context and those that will probably follow: after known distributions, each with its likeliest token."""
        path = [context]
        while (step := self._unmasked.get(path[-1], 1)) is not None:
            mask = self._mask(path[-1])
            token = next((token for token in step.ids if mask is None or allows(mask, token)), None)
            if token is None:
                break
            path.append((*path[-1], token))
        return path

    def _ask_for_steps(self, asked: Mapping[Ids, bool], top: int, most: int, words: int, guesses: Sequence[Ids]) -> int:
        """Have the host draft after contexts, each of which ends inside a word or not.

        Returns:
            The number of steps of the longest row.
        """
        masks: dict[Ids, bytes] = {}
        if self._allowed is not None:
            masks = self._masks(each for context in asked for each in self._predicted(context))
        reported = max(top, _REPORTED)
        reply = self._ask(
            "draft",
            DraftCall,
            contexts=PackedIds.of(asked, self._context),
            masks=PackedMasks.of(masks, self._context),
            top=reported,
            most=most,
            words=words,
            inside=np.fromiter(asked.values(), dtype=bool),
            branches=self._branches,
            certain=self._certainty.bound,
            guesses=PackedIds.of(guesses, self._context),
        )
        assert reply.steps is not None
        assert reply.branches is not None
        rows = reply.steps.unpack()
        for context, steps in zip([*asked, *reply.branches.unpack(self._context)], rows, strict=True):
            for step in steps:
                exact = self._allowed is None or context in masks
                (self._known if exact else self._unmasked).put(context, reported, step)
                context += step.ids[:1]
        return max(map(len, rows[: len(asked)]))

    def _ask(self, method: str, kind: type[SessionCall], **arguments: Any) -> Reply:
        call = self._call(kind, **arguments)
        self._raise_if_cancelled()
        self._open = True
        reply = self._channel.ask(method, call, self._raise_if_cancelled)
        if reply.opened:
            self._earlier = self._tokens
        # Tokens that a lost host had read count; only the first session says what earlier requests had read.
        first = self._earlier == SessionTokens()
        self._tokens = SessionTokens(
            read=self._earlier.read + reply.tokens.read,
            cached=reply.tokens.cached if first else self._earlier.cached,
        )
        return reply

    def _call(self, kind: type[SessionCall], **arguments: Any) -> SessionCall:
        name = f"{self._name}:{next(self._calls)}"
        return kind(session=self._name, call=name, context=packed(self._context), **self._options, **arguments)


class _Steps:
    """The likeliest tokens after contexts, with how many were asked for."""

    def __init__(self) -> None:
        self._steps: dict[Ids, tuple[int, TopTokens]] = {}

    def get(self, context: Ids, top: int) -> TopTokens | None:
        """The `top` likeliest tokens; None if they are unknown."""
        asked, step = self._steps.get(context, (0, None))
        if step is None or asked < top:
            return None
        return TopTokens(step.ids[:top], step.logprobs[:top]) if len(step.ids) > top else step

    def put(self, context: Ids, asked: int, step: TopTokens) -> None:
        """Keep the likeliest tokens, of which `asked` were asked for."""
        self._steps[context] = (asked, step)

    def keep(self, context: Ids) -> None:
        """Drop what does not continue a context, and whole distributions."""
        size = len(context)
        self._steps = {
            ids: (asked, step)
            for ids, (asked, step) in self._steps.items()
            if asked <= _MOST_KEPT and ids[:size] == context
        }
