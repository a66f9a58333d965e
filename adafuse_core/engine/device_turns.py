"""Scheduling of forward passes on one device: models take turns, and passes wait for requests that come back soon.

Between two passes, a request runs Python code, which gains nothing from running beside a pass. A pass therefore starts
when all recently answered requests have come back with a new read, or after a timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar

from adafuse_core.engine.clock import SYSTEM, Clock
from adafuse_core.forks import renew_after_fork

PATIENCE = 2.0  # timeout for answered requests, in durations of the last pass
MOST_SECONDS = 0.05  # upper bound of this timeout

_requester: ContextVar[Hashable] = ContextVar("requester", default=None)


def requester() -> Hashable:
    """Who makes the calling thread's requests: the thread itself, or who is named by `requests_of`."""
    return _requester.get() or threading.get_ident()


@contextmanager
def requests_of(name: Hashable) -> Iterator[None]:
    """Context in which requests are another's, such as those of a remote session, whose threads change."""
    token = _requester.set(name)
    try:
        yield
    finally:
        _requester.reset(token)


class _Queue:
    """The waiting requests of one model."""

    def __init__(self, waiting: Sized) -> None:
        self._waiting = waiting
        self.passed = 0  # passes of other models while these requests wait

    def weight(self) -> int:
        return len(self._waiting) * (1 + self.passed)


class Turns:
    """The scheduler of one device. Each request is identified by its `requester`.

    Args:
        clock: Clock for timeouts.
    """

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._pass_seconds = 0.0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, and forget the parent's requests."""
        self._changed = threading.Condition()
        self._taken = False
        self._queues: list[_Queue] = []
        self._expected: dict[Hashable, float] = {}  # times at which requesters were answered

    def expect(self, requesters: Iterable[Hashable]) -> None:
        """Let the next passes wait for these requesters, who were just answered."""
        with self._changed:
            self._expected |= dict.fromkeys(requesters, self._clock.now())

    def arrive(self) -> None:
        """Stop waiting for the calling requester, who has queued a request or finished the work."""
        with self._changed:
            self._expected.pop(requester(), None)
            if not self._expected:
                self._changed.notify_all()

    @contextmanager
    def hold(self, waiting: Sized, check: Callable[[], None]) -> Iterator[None]:
        """Hold the device for a pass. Models with more requests or a longer wait go first (`_Queue.weight`).

        Args:
            waiting: Queue of the model's requests, which may grow until the pass starts.
            check: Called while waiting; raises an exception to give up.
        """
        queue = _Queue(waiting)
        with self._changed:
            self._queues.append(queue)
            try:
                while (patience := self._patience_left()) or not self._is_next(queue):
                    self._clock.wait(self._changed, patience or MOST_SECONDS)
                    self._changed.release()  # `check` may take other locks
                    try:
                        check()
                    finally:
                        self._changed.acquire()
                self._taken = True
            finally:
                self._queues.remove(queue)
                for other in self._queues:
                    other.passed += 1
                self._changed.notify_all()
        start = self._clock.now()
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._pass_seconds = self._clock.now() - start
                self._changed.notify_all()

    def _is_next(self, queue: _Queue) -> bool:
        return not self._taken and queue is max(self._queues, key=_Queue.weight)

    def _patience_left(self) -> float:
        """Seconds left to wait for expected requesters. Those beyond the timeout are forgotten."""
        since = self._clock.now() - min(PATIENCE * self._pass_seconds, MOST_SECONDS)
        self._expected = {who: when for who, when in self._expected.items() if when > since}
        return max(self._expected.values(), default=since) - since
