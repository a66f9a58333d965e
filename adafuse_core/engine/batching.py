"""Joins what all running requests ask of one model into common passes.

There is no thread of its own: whoever waits for an answer and finds the model idle runs the next pass, for all that
have asked by then. A lone request so never changes threads, and many share the machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.store import Ask, Store
from adafuse_core.text.ids import Ids

_POLL_SECONDS = 0.05  # how often a waiting request looks whether it was cancelled
_IDLE_SECONDS = 0.5  # a sequence unused for so long gives way when memory is short


class Closed(Exception):
    """The model was freed."""


class Batcher:
    """The one door to a model's memory, for any number of threads.

    Args:
        store: Where asks are answered.
        max_kv_tokens: Most tokens to hold; None for no bound. A sequence that finds no room waits until others end
            or have been idle for a while; what gives way is read again when it is wanted.
    """

    def __init__(self, store: Store, *, max_kv_tokens: int | None = None) -> None:
        self.store = store
        self.turns = Turns()  # models on one device share theirs
        self.max_kv_tokens = max_kv_tokens
        self._changed = threading.Condition()
        self._last_used: dict[Memo, float] = {}  # of all sequences, oldest first
        self._in_call: set[Memo] = set()  # at work, so they keep their memory
        self._asks: list[Ask] = []
        self._passing: list[Ask] = []  # being answered by the pass that runs now
        self._leader: Ask | None = None  # whose thread runs the passes
        self._closed = False

    def open(self, context: Ids) -> Memo:
        """The memo of a new sequence. Nothing is computed yet."""
        memo = Memo(context)
        with self._changed:
            self._last_used[memo] = time.monotonic()
        return memo

    @contextmanager
    def call(self, memo: Memo) -> Iterator[None]:
        """Around work that asks several times: the sequence keeps its memory meanwhile."""
        with self._changed:
            self._in_call.add(memo)
        try:
            yield
        finally:
            with self._changed:
                self._in_call.discard(memo)
                self._last_used[memo] = time.monotonic()
                self._changed.notify_all()

    def answer(self, ask: Ask, check: Callable[[], None]) -> None:
        """Have an ask answered.

        Args:
            ask: What is wanted.
            check: Called while waiting; raises to give up.

        Raises:
            Closed: The model was freed.
        """
        with self._changed:
            self._asks.append(ask)
            self._leader = self._leader or ask
            self.turns.decided()
            try:
                while not ask.settled:
                    if ask not in self._passing:
                        if self._closed:
                            raise Closed
                        check()
                    if self._leader is not ask:
                        self._sleep(ask)
                    elif not self._lead(check):
                        self._changed.wait(_POLL_SECONDS)
            finally:
                self._leave(ask)
        if ask.error is not None:
            raise ask.error

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one."""
        with self._changed:
            if self._closed:
                raise Closed
            self.store.commit(memo, context)

    def close(self, memo: Memo) -> None:
        """Forget a sequence."""
        with self._changed:
            self._last_used.pop(memo, None)
            memo.restart()
            self._changed.notify_all()
        self.turns.decided()

    def tokens_held(self) -> int:
        """Tokens whose keys and values are in memory."""
        with self._changed:
            return 0 if self._closed else sum(map(self.store.tokens_held, self._last_used))

    def shut(self) -> None:
        """Answer nothing any more, and let go of the model."""
        with self._changed:
            self._closed = True
            while self._passing:
                self._changed.wait()
            for memo in self._last_used:
                memo.restart()
            del self.store
            self._changed.notify_all()

    def _sleep(self, ask: Ask) -> None:
        self._changed.release()
        try:
            ask.wake.wait(_POLL_SECONDS)
        finally:
            self._changed.acquire()

    def _leave(self, ask: Ask) -> None:
        """Take an ask from the queue; another one leads if this one did."""
        self._asks.remove(ask)
        if self._leader is ask:
            self._leader = next((other for other in self._asks if not other.settled), None)
            if self._leader is not None:
                self._leader.wake.set()

    def _lead(self, check: Callable[[], None]) -> bool:
        """Run the next pass, the lock let go meanwhile; False if there is room for none of the asks."""
        self._changed.release()
        try:
            with self.turns.take(self._asks, check):  # while it waits for the device, more asks come together
                with self._changed:
                    self._passing = [] if self._closed else self._admitted()
                self._pass(self._passing)
        finally:
            self._changed.acquire()
            passed, self._passing = self._passing, []
            settled = [ask for ask in passed if ask.settled]
            self.turns.answer(ask.thread for ask in settled)
            for ask in settled:
                ask.wake.set()
            self._changed.notify_all()
        return bool(passed)

    def _pass(self, asks: list[Ask]) -> None:
        if not asks:
            return
        try:
            self.store.read(asks)
        except Exception as error:
            if len(asks) == 1:
                asks[0].error, asks[0].settled = error, True
            else:
                for ask in asks:  # one of them is to blame; the others go on
                    self._pass([ask])
            return
        for ask in asks:
            ask.settled = ask.known()

    def _admitted(self) -> list[Ask]:
        """The asks for whose sequences there is room, oldest sequence first."""
        order = {memo: place for place, memo in enumerate(self._last_used)}
        asks = sorted((ask for ask in self._asks if not ask.settled), key=lambda ask: order[ask.memo])
        if self.max_kv_tokens is None:
            return asks
        held = {memo: self.store.tokens_held(memo) for memo in self._last_used}
        more = sum(self.store.tokens_needed(ask) - held[ask.memo] for ask in asks)
        if sum(held.values()) + more <= self.max_kv_tokens:
            return asks
        admitted, refused = [], False
        for place, ask in enumerate(asks):
            if refused and not held[ask.memo]:
                continue  # nobody is let in before an older one
            if self._make_room(ask, held, [other.memo for other in asks[:place:-1]]):
                admitted.append(ask)
            else:
                refused = True
        return admitted

    def _make_room(self, ask: Ask, held: dict[Memo, int], younger: list[Memo]) -> bool:
        """Whether a sequence finds room, after idle ones and then younger ones that wait too gave way."""
        assert self.max_kv_tokens is not None
        memo, need = ask.memo, self.store.tokens_needed(ask)
        excess = sum(held.values()) - held[memo] + need - self.max_kv_tokens
        since = time.monotonic() - _IDLE_SECONDS
        idle = [other for other, used in self._last_used.items() if used < since and other not in self._in_call]
        givers = [other for other in [*idle, *younger] if held[other] and other is not memo]
        alone = not any(tokens for other, tokens in held.items() if other is not memo and other not in givers)
        if excess > sum(held[other] for other in givers) and not alone:
            return False
        for other in givers:
            if excess > 0:
                excess -= held[other]
                held[other] = 0
                other.restart()
        held[memo] = need
        return True
