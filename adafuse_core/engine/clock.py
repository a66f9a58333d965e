"""The time that waiting threads go by. Tests pass a clock that they drive themselves."""

from __future__ import annotations

import threading
import time


class Clock:
    """The time of this machine."""

    def now(self) -> float:
        """Seconds since some moment in the past; never goes back."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until a condition, whose lock the caller holds, is notified or the seconds are over."""
        condition.wait(seconds)


SYSTEM = Clock()
