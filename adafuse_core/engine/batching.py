"""Continuous batching: the read requests of all running sequences share the forward passes of a model.

There is no worker thread. The first waiting thread becomes the leader and runs the forward pass for all requests in the
queue. A single request thus never changes threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from adafuse_core.engine.admission import Admission
from adafuse_core.engine.clock import SYSTEM, Clock
from adafuse_core.engine.device_turns import Turns, requester
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefix_cache import PrefixCache
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.forks import renew_after_fork
from adafuse_core.text.ids import Ids

POLL_SECONDS = 0.05  # interval at which waiting requests check for cancellation
IDLE_SECONDS = 0.5  # after which an unused sequence may be evicted


class Closed(Exception):
    """The model was freed."""


class Orphaned(Exception):
    """The sequence belongs to the parent process."""


class _Queued:
    """A request in the queue and its requester."""

    def __init__(self, request: ReadRequest, lock: threading.RLock) -> None:
        self.request = request
        self.requester = requester()
        self.settled = False  # whether the request was answered or failed
        self.error: Exception | None = None
        self.wake = threading.Condition(lock)  # notified when the request is settled or becomes the leader


class Batcher:
    """Batches the requests to a model's KV store. Thread-safe.

    Args:
        store: KV store that answers the requests.
        max_kv_tokens: Capacity of the KV cache in tokens; None for no limit. Requests that don't fit wait until other
            sequences end or become idle; see `Admission`.
        max_cached_tokens: Most tokens that closed sequences hold within this capacity, for later requests that begin
            like them; None for no limit, 0 to share nothing between requests.
        clock: Clock for timeouts.
    """

    def __init__(
        self,
        store: Store,
        *,
        max_kv_tokens: int | None = None,
        max_cached_tokens: int | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.store = store
        self.turns = Turns(clock)  # replaced by a shared object for models on one device
        self.max_kv_tokens = max_kv_tokens
        self._clock = clock
        self._closed = False
        self._last_used: dict[Memo, float] = {}  # times by open sequence, oldest sequence first
        self._orphans: list[Memo] = []  # sequences of the parent process
        self._cache = PrefixCache(store, max_cached_tokens)
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drop sequences and requests of the parent, which may be in an inconsistent state."""
        self._lock = threading.RLock()  # guards all fields below
        self._changed = threading.Condition(self._lock)  # notified of new requests, and of ended passes and sequences
        # Keeps their memory: it must not be freed while locks are being replaced.
        self._orphans += [*self._last_used, *([] if self._closed else self._cache.abandon())]
        self._last_used = {}
        self._in_call: set[Memo] = set()  # sequences between two reads of one operation, which are not evicted as idle
        self._queue: list[_Queued] = []
        self._passing: list[_Queued] = []  # requests of the running pass
        self._leader: _Queued | None = None  # the request whose thread runs the passes

    def open(self, context: Ids, namespace: str = "") -> Memo:
        """Open a sequence, which shares beginnings with others of its namespace. Nothing is computed yet."""
        memo = Memo(context, namespace)
        with self._lock:
            self._last_used[memo] = self._clock.now()
        return memo

    @contextmanager
    def call(self, memo: Memo) -> Iterator[None]:
        """Context of an operation with several reads, during which the sequence does not count as idle."""
        with self._lock:
            self._in_call.add(memo)
        try:
            yield
        finally:
            with self._lock:
                self._in_call.discard(memo)
                if memo in self._last_used:
                    self._last_used[memo] = self._clock.now()
                self._changed.notify_all()

    def read(self, request: ReadRequest, check: Callable[[], None]) -> None:
        """Queue a request and wait until it is answered.

        Args:
            request: A request of a sequence that has no other request in the queue.
            check: Called while waiting; raises an exception to give up.

        Raises:
            Closed: The model was freed.
            Orphaned: The sequence was opened before this process was forked.
        """
        with self._lock:
            if request.memo not in self._last_used:
                raise Orphaned
            request.ends()  # contexts that end in the trunk shorten it, before a beginning is looked for
            queued = _Queued(request, self._lock)
            self._queue.append(queued)
            self._leader = self._leader or queued
            self.turns.arrive()
            self._changed.notify_all()  # a leader without an admissible request may be able to run this one
            try:
                while not queued.settled:
                    if queued not in self._passing:
                        if self._closed:
                            raise Closed
                        check()
                    if self._leader is not queued:
                        self._clock.wait(queued.wake, POLL_SECONDS)
                    elif not self._lead(check):
                        self._clock.wait(self._changed, POLL_SECONDS)
            finally:
                self._leave(queued)
        if queued.error is not None:
            raise queued.error

    def commit(self, memo: Memo, context: Ids) -> None:
        """Set the committed context of a sequence."""
        with self._lock:
            if self._closed:
                raise Closed
            self.store.commit(memo, context)

    def close(self, memo: Memo) -> None:
        """Close a sequence. Its memory is kept for later requests, as far as there is room."""
        with self._lock:
            opened = self._last_used.pop(memo, None) is not None
            if opened and not self._closed and memo not in [queued.request.memo for queued in self._passing]:
                self._cache.keep(memo)
            else:
                memo.restart()
            self._changed.notify_all()
        self.turns.arrive()

    def tokens_held(self) -> int:
        """Tokens in the KV cache of running requests."""
        with self._lock:
            return 0 if self._closed else sum(map(self.store.tokens_held, self._last_used))

    def tokens_cached(self) -> int:
        """Tokens in the KV cache that are kept for later requests."""
        with self._lock:
            return 0 if self._closed else sum(map(self.store.tokens_held, self._cache.kept))

    def forget(self, namespace: str | None = None) -> None:
        """Free what is kept for later requests, of one namespace or of all."""
        with self._lock:
            if not self._closed:
                self._cache.clear(namespace)
            self._changed.notify_all()

    def shut(self) -> None:
        """Refuse further requests, wait for the running pass, and release the model."""
        with self._lock:
            self._closed = True
            while self._passing:
                self._changed.wait()
            for memo in self._last_used:
                memo.restart()
            self._cache.clear()
            del self.store, self._cache
            self._changed.notify_all()

    def _leave(self, queued: _Queued) -> None:
        """Remove a request from the queue. If it was the leader, the next waiting request becomes the leader."""
        self._queue.remove(queued)
        if self._leader is queued:
            self._leader = next((other for other in self._queue if not other.settled), None)
            if self._leader is not None:
                self._leader.wake.notify_all()

    def _lead(self, check: Callable[[], None]) -> bool:
        """Run the next pass without holding the lock; False if no request was admitted."""
        self._lock.release()
        try:
            with self.turns.hold(self._queue, check):  # while this waits for the device, the queue grows
                with self._lock:
                    self._passing = [] if self._closed else self._admitted()
                self._pass(self._passing)
        finally:
            self._lock.acquire()
            passed, self._passing = self._passing, []
            settled = [queued for queued in passed if queued.settled]
            self.turns.expect(queued.requester for queued in settled)
            for queued in settled:
                queued.wake.notify_all()
            self._changed.notify_all()
        return bool(passed)

    def _pass(self, passing: Sequence[_Queued]) -> None:
        if not passing:
            return
        try:
            self.store.read([queued.request for queued in passing])
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) and self._make_room():
                self._pass(passing)
            elif len(passing) == 1:
                passing[0].error, passing[0].settled = error, True
                with self._lock:
                    self._cache.distrust(passing[0].request.memo)
            else:
                for queued in passing:  # run each request alone, so that only the failing one gets the error
                    self._pass([queued])
            return
        for queued in passing:
            queued.settled = queued.request.is_answered()

    def _make_room(self) -> bool:
        """Free what is kept for later requests; returns whether there was anything."""
        with self._lock:
            return self._cache.clear()

    def _admitted(self) -> list[_Queued]:
        """The requests of the next pass, oldest sequence first."""
        age = {memo: index for index, memo in enumerate(self._last_used)}
        waiting = {queued.request: queued for queued in self._queue if not queued.settled}
        requests = sorted(waiting, key=lambda request: age[request.memo])
        beginnings = self._cache.beginnings(requests, self._last_used)
        requests = [request for request in requests if beginnings.get(request.memo, request) is not None]
        moves = {memo for memo, beginning in beginnings.items() if beginning is not None and beginning.moves}
        if self.max_kv_tokens is not None:
            admission = Admission(
                self.store, self.max_kv_tokens, self._last_used, self._idle(), self._cache, beginnings
            )
            requests = admission.admit(requests)
            moves |= admission.moves
        for memo in (request.memo for request in requests):
            if (beginning := beginnings.get(memo)) is not None:
                self._cache.adopt(memo, beginning, move=memo in moves)
        return [waiting[request] for request in requests]

    def _idle(self) -> list[Memo]:
        since = self._clock.now() - IDLE_SECONDS
        return [memo for memo, used in self._last_used.items() if used < since and memo not in self._in_call]
