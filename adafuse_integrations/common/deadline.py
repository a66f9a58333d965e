"""The time a call may take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from adafuse_core.errors import CancelledError, DeadlineError


class Deadline:
    """So many seconds from now, or no end if None."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    @contextmanager
    def enforced(self, cancel: threading.Event) -> Iterator[None]:
        """Set the event when time is up, and raise `DeadlineError` for the cancelling that follows."""
        if self._seconds is None:
            yield
            return
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            cancel.set()

        timer = threading.Timer(max(0.0, self._began + self._seconds - time.monotonic()), expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        except CancelledError as error:
            if not expired.is_set():
                raise
            raise DeadlineError(
                f"the answer was not complete after timeout={self._seconds} seconds",
                member=error.member,
                hint="give it more time, or a smaller max_tokens",
            ) from error
        finally:
            timer.cancel()
