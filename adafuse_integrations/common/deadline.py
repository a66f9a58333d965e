"""The time a call may take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from time import monotonic

from adafuse_core.errors import CancelledError, DeadlineError


class Deadline:
    """A moment after which a call is ended.

    Args:
        seconds: How long from now; None for no end.
        clock: Tells the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] | None = None) -> None:
        self._seconds = seconds
        self._clock = clock or monotonic
        self._began = self._clock()

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

        timer = Timer(max(0.0, self._began + self._seconds - self._clock()), expire)
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
                partial=error.partial,
            ) from error
        finally:
            timer.cancel()
