"""The clock for timeouts. Tests replace it by one that they control."""

from __future__ import annotations

import threading
import time


class Clock:
    """The system clock."""

    def now(self) -> float:
        """Monotonic time in seconds."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until a condition is notified or the time is over. The caller holds its lock."""
        condition.wait(seconds)


SYSTEM = Clock()
