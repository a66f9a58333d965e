"""Whose turn it is on a device: models that share one interleave, and passes wait for requests that will soon come.

Between two passes a request reads its words and decides how to go on; that is Python, which gains nothing from running
beside a pass. So a pass begins when every request that the last passes answered has come back, or has been away for
too long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from adafuse_core.engine.clock import SYSTEM, Clock
from adafuse_core.forks import renew_after_fork

PATIENCE = 2.0  # times the last pass: how long an answered request is waited for
MOST_SECONDS = 0.05  # but never longer


class _Queue:
    """The requests that wait for a pass of one model."""

    def __init__(self, waiting: Sized) -> None:
        self._waiting = waiting
        self.passed = 0  # passes of other models since

    def weight(self) -> int:
        return len(self._waiting) * (1 + self.passed)


class Turns:
    """One device's turns. Threads stand for requests.

    Args:
        clock: What waiting threads go by.
    """

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._pass_seconds = 0.0
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Nobody waits yet."""
        self._changed = threading.Condition()
        self._taken = False
        self._queues: list[_Queue] = []
        self._expected: dict[int, float] = {}  # threads that will come back, and when they were answered

    def expect(self, threads: Iterable[int]) -> None:
        """These threads have their answers: the next passes wait for them for a moment."""
        with self._changed:
            self._expected |= dict.fromkeys(threads, self._clock.now())

    def arrive(self) -> None:
        """The calling thread has come back with a request, or will not."""
        with self._changed:
            self._expected.pop(threading.get_ident(), None)
            if not self._expected:
                self._changed.notify_all()

    @contextmanager
    def hold(self, waiting: Sized, check: Callable[[], None]) -> Iterator[None]:
        """Hold the device for a pass. Of several models, the one comes first whose requests are more and waited longer.

        Args:
            waiting: The requests; others may join them until the pass begins.
            check: Called while waiting; raises to give up.
        """
        queue = _Queue(waiting)
        with self._changed:
            self._queues.append(queue)
            try:
                while (patience := self._patience_left()) or not self._is_next(queue):
                    self._clock.wait(self._changed, patience or MOST_SECONDS)
                    self._changed.release()  # what `check` does may take other locks
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
        """Seconds for which expected threads are still waited for; forgets those that stay away longer."""
        since = self._clock.now() - min(PATIENCE * self._pass_seconds, MOST_SECONDS)
        self._expected = {thread: when for thread, when in self._expected.items() if when > since}
        return max(self._expected.values(), default=since) - since
