"""The host of a remote member: answers the calls of remote sessions with the local backend of its process."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adafuse_core.backends.base import TopTokens
from adafuse_core.backends.local import LocalBackend, LocalSession
from adafuse_core.backends.remote.messages import (
    DraftCall,
    PackedIds,
    PackedSteps,
    Reply,
    ScoreCall,
    SessionCall,
    packed_logprobs,
)
from adafuse_core.backends.remote.words import starting_tokens, until_words
from adafuse_core.engine.device_turns import requests_of
from adafuse_core.errors import CancelledError
from adafuse_core.text.ids import Ids

logger = logging.getLogger(__name__)

# Open sessions. Beyond, those that were not used for longest are closed, and opened again if they are needed.
MOST_SESSIONS = 1000
IDLE_SECONDS = 900.0  # after which a session is closed: its process may have been killed
_REMEMBERED = 1000  # cancelled calls that may not have arrived yet


class Host:
    """Sessions of one backend, by the names that their callers gave them. Thread-safe.

    Args:
        backend: The backend.
        kinds: See `token_kinds`.
    """

    def __init__(self, backend: LocalBackend, kinds: bytes) -> None:
        self.backend = backend
        self._kinds = kinds
        self._lock = threading.Lock()  # guards all fields of this object and of the sessions but their backend's state
        self._sessions: dict[str, _Hosted] = {}  # least recently used first
        self._cancelled: deque[str] = deque(maxlen=_REMEMBERED)

    def draft(self, call: DraftCall) -> Reply:
        """Answer a call of `Session.draft`. Raises `CancelledError` if the call is cancelled."""
        with self._session(call) as hosted:
            context, session = hosted.context, hosted.session
            hosted.masks = call.masks.unpack(context)
            session.branches = call.branches
            contexts, guesses = call.contexts.unpack(context), call.guesses.unpack(context)
            inside = call.inside.tolist()
            firsts = self._uncertain(call, session, contexts, guesses)
            branches = [
                (*contexts[row], token)
                for row, step in firsts.items()
                for token in starting_tokens(self._kinds, step, call.branches)
            ]
            going = [row for row in range(len(contexts)) if row not in firsts]
            until = until_words(self._kinds, call.words, [inside[row] for row in going] + [True] * len(branches))
            drafted = session.draft([*(contexts[row] for row in going), *branches], call.most, call.top, until, guesses)
            rows = {row: [step] for row, step in firsts.items()} | dict(zip(going, drafted, strict=False))
            return Reply(
                tokens=session.tokens(),
                opened=hosted.is_new,
                steps=PackedSteps.of([*(rows[row] for row in range(len(contexts))), *drafted[len(going) :]]),
                branches=PackedIds.of(branches, context),
            )

    def _uncertain(
        self, call: DraftCall, session: LocalSession, contexts: Sequence[Ids], guesses: Sequence[Ids]
    ) -> dict[int, TopTokens]:
        """The first steps of the rows from which the caller will branch, by row.

        All rows take this step, so that afterwards the others and the branches can be drafted in the same passes.
        """
        if call.branches == 1 or call.most == 1 or call.inside.all():
            return {}
        rows = session.draft(contexts, 1, call.top, lambda *_: True, guesses)
        return {
            row: steps[0]
            for row, (steps, inside) in enumerate(zip(rows, call.inside.tolist(), strict=True))
            if steps and not inside and steps[0].margin < call.certain
        }

    def score(self, call: ScoreCall) -> Reply:
        """Answer a call of `Session.score`. Raises `CancelledError` if the call is cancelled."""
        with self._session(call) as hosted:
            context = hosted.context
            hosted.masks = call.masks.unpack(context)
            rows = hosted.session.score(
                call.contexts.unpack(context), call.continuations.unpack(), call.guesses.unpack(context)
            )
            return Reply(tokens=hosted.session.tokens(), opened=hosted.is_new, logprobs=packed_logprobs(rows))

    def cancel(self, call: str) -> None:
        """Let a call end before its next pass, whether it is running or has not arrived yet."""
        self._cancelled.append(call)

    def end(self, call: SessionCall) -> None:
        """Close a session, at the end of its running call if there is one. Its context serves later sessions."""
        with self._lock:
            hosted = self._sessions.pop(call.session, None)
            if hosted is None:
                return
            hosted.last = call
            if hosted.users:
                return
        with requests_of(call.session):
            hosted.close()

    @contextmanager
    def _session(self, call: SessionCall) -> Iterator[_Hosted]:
        """The session of a call, for this call alone, opened if necessary and with the call's context."""
        with self._lock:
            hosted = self._sessions.pop(call.session, None) or _Hosted()
            self._sessions[call.session] = hosted
            hosted.users += 1
            hosted.used = time.monotonic()
            idle = self._idle()
        for each in idle:
            each.close()
        try:
            with hosted.lock, requests_of(call.session):
                hosted.check = lambda: self._raise_if_cancelled(call)
                hosted.check()
                hosted.prepare(self.backend, call)
                yield hosted
        finally:
            with self._lock:
                hosted.users -= 1
                ended = hosted.last is not None and not hosted.users
            if ended:
                with requests_of(call.session):
                    hosted.close()

    def _idle(self) -> list[_Hosted]:
        """Removes sessions beyond the bound, and those that were idle for long, and returns them."""
        excess = len(self._sessions) - MOST_SESSIONS
        old = time.monotonic() - IDLE_SECONDS
        idle = [name for name, hosted in self._sessions.items() if not hosted.users]
        names = [name for place, name in enumerate(idle) if place < excess or self._sessions[name].used < old]
        return [self._sessions.pop(name) for name in names]

    def _raise_if_cancelled(self, call: SessionCall) -> None:
        if call.call in self._cancelled:
            raise CancelledError("the call was cancelled")


class _Hosted:
    """A session of the backend, and what the running call says about it."""

    session: LocalSession

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held by the running call
        self.users = 0  # calls that run or wait
        self.used = 0.0  # time of the last call, of the monotonic clock
        self.last: SessionCall | None = None  # the last call of a session that is to be closed
        self.is_new = True
        self.context: Ids = ()
        self.masks: dict[Ids, bytes] = {}
        self.check: Callable[[], None] = _no_check

    def prepare(self, backend: LocalBackend, call: SessionCall) -> None:
        """Open the session if this is its first call, and set its context."""
        context = tuple(call.context.tolist())
        self.is_new = not self.context
        if self.is_new:
            self.session = backend.open(
                context,
                window=call.window,
                lookup=call.lookup,
                raise_if_cancelled=lambda: self.check(),
                allowed=(lambda ids: self.masks.get(ids)) if call.masked else None,
                namespace=call.namespace,
            )
        elif context != self.context:
            self.session.commit(context)
        self.context = context

    def close(self) -> None:
        """Close the session, with the context of its last call."""
        if not self.context:
            return
        if self.last is not None and (context := tuple(self.last.context.tolist())) != self.context:
            self.session.commit(context)
        self.session.close()


def _no_check() -> None:
    """The check of a session without a call."""
