"""A clock that a test drives: nothing happens by the passing of time unless the test lets it pass."""

from __future__ import annotations

import contextlib
import threading

SOON = 10.0  # real seconds; no thread takes as long


class DrivenClock:
    """Stands still until it is advanced. Stands in for `adafuse_core.engine.clock.Clock`."""

    def __init__(self):
        self._now = 0.0
        self._changed = threading.Condition()
        self._sleepers = {}  # what each waits for, and until when
        self.waits = 0  # so far
        self._stopped = False

    def now(self):
        return self._now

    def wait(self, condition, seconds):
        me = object()
        with self._changed:
            self.waits += 1
            self._sleepers[me] = condition, self._now + seconds
            self._changed.notify_all()
        try:
            condition.wait(SOON)
        finally:
            with self._changed:
                self._sleepers.pop(me, None)
                self._changed.notify_all()
        if self._stopped:
            raise RuntimeError("the test is over")

    def stop(self):
        """End the threads that still wait, as those of a failed test do."""
        self._stopped = True
        self.advance(float("inf"))

    def advance(self, seconds):
        """Let time pass, and wake those who have waited long enough."""
        with self._changed:
            self._now += seconds
            due = [me for me, (_, until) in self._sleepers.items() if until <= self._now]
            conditions = {self._sleepers.pop(me)[0] for me in due}
        for condition in conditions:
            with condition:
                condition.notify_all()

    def wait_for_sleepers(self, count):
        """Until so many threads wait."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._sleepers) == count, SOON), len(self._sleepers)

    def result_of(self, future):
        """What a thread returns, with as much time passing as it takes."""
        for _ in range(1000):
            with contextlib.suppress(TimeoutError):
                return future.result(0.01)
            self.advance(1.0)
        raise TimeoutError
