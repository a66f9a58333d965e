"""Joins what all running requests want to read with one model into common passes.

There is no thread of its own: a thread that waits for its answer and finds the model idle (the leader) runs the next
pass, for all requests in the queue. So a lone request never changes threads, and many requests share each pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from adafuse_core.engine.admission import Admission
from adafuse_core.engine.clock import SYSTEM, Clock
from adafuse_core.engine.device_turns import Turns
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.forks import renew_after_fork
from adafuse_core.text.ids import Ids

POLL_SECONDS = 0.05  # how often a waiting request looks whether it was cancelled
IDLE_SECONDS = 0.5  # a sequence unused for longer may be evicted when memory is short


class Closed(Exception):
    """The model was freed."""


class Orphaned(Exception):
    """The sequence belongs to the process that this one was forked from."""


class _Queued:
    """A request in the queue, and the thread that waits for its answer."""

    def __init__(self, request: ReadRequest, lock: threading.RLock) -> None:
        self.request = request
        self.thread = threading.get_ident()
        self.settled = False  # the request is answered, or there is an error
        self.error: Exception | None = None
        self.wake = threading.Condition(lock)  # notified when it is settled, or becomes the leader


class Batcher:
    """The one door to a model's memory, for any number of threads.

    Args:
        store: Answers the requests.
        max_kv_tokens: Most tokens to hold; None for no bound. A sequence that finds no room waits until others end
            or have been idle for a while; see `Admission`.
        clock: What waiting threads go by.
    """

    def __init__(self, store: Store, *, max_kv_tokens: int | None = None, clock: Clock = SYSTEM) -> None:
        self.store = store
        self.turns = Turns(clock)  # models on one device share theirs
        self.max_kv_tokens = max_kv_tokens
        self._clock = clock
        self._closed = False
        self._last_used: dict[Memo, float] = {}  # of all sequences, oldest first
        self._orphans: list[Memo] = []  # sequences of the process that this one was forked from
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Begin without sequences and requests. The parent's sequences may be in the middle of a change."""
        self._lock = threading.RLock()  # of everything below
        self._changed = threading.Condition(self._lock)  # a request came, a pass or a sequence ended
        self._orphans += self._last_used  # kept, since what they hold is not to be freed while locks are renewed
        self._last_used = {}
        self._in_call: set[Memo] = set()  # sequences that keep their memory, since they are in the middle of work
        self._queue: list[_Queued] = []
        self._passing: list[_Queued] = []  # read by the pass that runs now
        self._leader: _Queued | None = None  # its thread runs the passes

    def open(self, context: Ids) -> Memo:
        """The memo of a new sequence. Nothing is computed yet."""
        memo = Memo(context)
        with self._lock:
            self._last_used[memo] = self._clock.now()
        return memo

    @contextmanager
    def call(self, memo: Memo) -> Iterator[None]:
        """Around work that reads several times: the sequence is not idle meanwhile."""
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
        """Have a request answered.

        Args:
            request: Of a sequence that has no other request in the queue.
            check: Called while waiting; raises to give up.

        Raises:
            Closed: The model was freed.
            Orphaned: The sequence was opened before this process was forked.
        """
        with self._lock:
            if request.memo not in self._last_used:
                raise Orphaned
            queued = _Queued(request, self._lock)
            self._queue.append(queued)
            self._leader = self._leader or queued
            self.turns.arrive()
            self._changed.notify_all()  # a leader that waits for room may find some for this request
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
        """Make a context the committed one."""
        with self._lock:
            if self._closed:
                raise Closed
            self.store.commit(memo, context)

    def close(self, memo: Memo) -> None:
        """Forget a sequence."""
        with self._lock:
            self._last_used.pop(memo, None)
            memo.restart()
            self._changed.notify_all()
        self.turns.arrive()

    def tokens_held(self) -> int:
        """Tokens whose keys and values are in memory."""
        with self._lock:
            return 0 if self._closed else sum(map(self.store.tokens_held, self._last_used))

    def shut(self) -> None:
        """Refuse all further requests, and let go of the model once the running pass is over."""
        with self._lock:
            self._closed = True
            while self._passing:
                self._changed.wait()
            for memo in self._last_used:
                memo.restart()
            del self.store
            self._changed.notify_all()

    def _leave(self, queued: _Queued) -> None:
        """Take a request from the queue; if it led, another one becomes the leader."""
        self._queue.remove(queued)
        if self._leader is queued:
            self._leader = next((other for other in self._queue if not other.settled), None)
            if self._leader is not None:
                self._leader.wake.notify_all()

    def _lead(self, check: Callable[[], None]) -> bool:
        """Run the next pass, with the lock released meanwhile; False if no request was admitted."""
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
            self.turns.expect(queued.thread for queued in settled)
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
            if len(passing) == 1:
                passing[0].error, passing[0].settled = error, True
            else:
                for queued in passing:  # one of them is to blame; the others are read without it
                    self._pass([queued])
            return
        for queued in passing:
            queued.settled = queued.request.is_answered()

    def _admitted(self) -> list[_Queued]:
        """The requests that the next pass reads, oldest sequence first."""
        age = {memo: index for index, memo in enumerate(self._last_used)}
        waiting = {queued.request: queued for queued in self._queue if not queued.settled}
        requests = sorted(waiting, key=lambda request: age[request.memo])
        if self.max_kv_tokens is not None:
            admission = Admission(self.store, self.max_kv_tokens, self._last_used, self._idle())
            requests = admission.admit(requests)
        return [waiting[request] for request in requests]

    def _idle(self) -> list[Memo]:
        since = self._clock.now() - IDLE_SECONDS
        return [memo for memo, used in self._last_used.items() if used < since and memo not in self._in_call]
