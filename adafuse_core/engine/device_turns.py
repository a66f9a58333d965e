"""Whose turn it is on a device: models that share one interleave, and passes wait for requests that are about to ask.

Between two passes a request reads its words and decides; that is Python, which gains nothing from running beside
a pass. So a pass begins when all requests that the last ones answered have asked again, or were away for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

_PATIENCE = 2.0  # times the last pass: how long an answered request is waited for
_MOST_SECONDS = 0.05


class _Queue:
    """Requests that wait for a pass of one model."""

    def __init__(self, waiting: Sized) -> None:
        self._waiting = waiting
        self.passed = 0  # passes of other models since

    def weight(self) -> int:
        return len(self._waiting) * (1 + self.passed)


class Turns:
    """One device's turns. Threads stand for requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = False
        self._pass_seconds = 0.0
        self._queues: list[_Queue] = []
        self._answered: dict[int, float] = {}  # by thread, when it was answered and began to decide what comes next

    def decided(self) -> None:
        """The calling thread has asked again, or will not."""
        with self._changed:
            self._answered.pop(threading.get_ident(), None)
            if not self._answered:  # else passes wait for those still
                self._changed.notify_all()

    def answer(self, threads: Iterable[int]) -> None:
        """These threads got what they asked for."""
        with self._changed:
            self._answered |= dict.fromkeys(threads, time.monotonic())

    @contextmanager
    def take(self, waiting: Sized, check: Callable[[], None]) -> Iterator[None]:
        """Hold the device for a pass; where more requests wait, and for longer, comes first.

        Args:
            waiting: The requests.
            check: Called while waiting; raises to give up.
        """
        queue = _Queue(waiting)
        with self._changed:
            self._queues.append(queue)
            try:
                while (wait := self._wait()) > 0 or self._taken or queue is not max(self._queues, key=_Queue.weight):
                    self._changed.wait(wait if wait > 0 else _MOST_SECONDS)
                    self._changed.release()  # what it checks may take other locks
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
        start = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._pass_seconds = time.monotonic() - start
                self._changed.notify_all()

    def _wait(self) -> float:
        """Seconds to wait for the answered; those who stay away longer are forgotten."""
        since = time.monotonic() - min(_PATIENCE * self._pass_seconds, _MOST_SECONDS)
        self._answered = {thread: when for thread, when in self._answered.items() if when > since}
        return max(self._answered.values(), default=since) - since
