"""Cancellation and timeout of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from adafuse_core.checks import expect
from adafuse_core.errors import CancelledError, DeadlineError

POLL_SECONDS = 0.05  # interval at which a waiting call checks the caller's event


class Cancellation(threading.Event):
    """Event that ends one call. The core checks it at every step.

    The event is set by `set()`, by the caller's own event, or by the timeout.

    Args:
        timeout: Time limit of the call in seconds, counted from now; None for no limit.
        event: The caller's own event, which also ends the call; None if the caller has none.
        clock: Returns the current time in seconds.
    """

    def __init__(
        self,
        timeout: float | None = None,
        event: threading.Event | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        self._timeout, self._event, self._clock = timeout, event, clock or monotonic
        self._deadline = None if timeout is None else self._clock() + timeout
        self._timed_out = False  # the deadline passed before the call was cancelled

    def is_set(self) -> bool:
        """Whether the call must end."""
        if super().is_set() or (self._event is not None and self._event.is_set()):
            return True
        self._timed_out = self._timed_out or (self._deadline is not None and self._clock() >= self._deadline)
        return self._timed_out

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the call must end, or for at most `timeout` seconds; return whether the call must end."""
        until = None if timeout is None else monotonic() + timeout
        while not self.is_set():
            left = POLL_SECONDS if until is None else min(POLL_SECONDS, until - monotonic())
            if left <= 0:
                return False
            super().wait(left)
        return True

    def raise_if_set(self) -> None:
        """Raise `DeadlineError` after a timeout, `CancelledError` after a cancellation."""
        if self.is_set():
            raise self.resolve(CancelledError("the call was cancelled"))

    def resolve(self, error: CancelledError) -> CancelledError:
        """Return the error itself, or a `DeadlineError` caused by the error if the call timed out."""
        if not (self.is_set() and self._timed_out):
            return error
        late = DeadlineError(
            f"the answer was not complete after timeout={self._timeout} seconds",
            member=error.member,
            hint="give a longer timeout, or a smaller max_tokens",
            partial=error.partial,
        )
        late.__cause__ = error
        return late


def check_call_options(timeout: object = None, cancel: object = None) -> None:
    """Check the options `timeout` and `cancel` of a call.

    Raises:
        ConfigError: `timeout` is not a number of seconds above 0, or `cancel` is not an event. Both may be None.
    """
    seconds = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0
    expect(timeout is None or seconds, "timeout", timeout, "a number of seconds above 0, or None")
    expect(isinstance(cancel, threading.Event | None), "cancel", cancel, "a threading.Event, or None")
