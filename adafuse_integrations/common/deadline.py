"""When a call is to end: because somebody cancels it, or because its time is up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from adafuse_core.errors import CancelledError, ConfigError, DeadlineError

POLL_SECONDS = 0.05  # how often a call that waits looks at the caller's event


class Cancellation(threading.Event):
    """Ends one call: it is set by `set()`, by an event of the caller, or by the time. The core asks it at every step.

    Args:
        timeout: Seconds that the call may take from now on; None for no limit.
        event: The caller's own, which ends the call too; None if there is none.
        clock: Tells the time in seconds.
    """

    def __init__(
        self,
        timeout: float | None = None,
        event: threading.Event | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        self._timeout, self._event, self._clock = timeout, event, clock or monotonic
        self._end = None if timeout is None else self._clock() + timeout
        self._late = False  # the time was up before anybody cancelled the call

    def is_set(self) -> bool:
        """Whether the call is to end."""
        if super().is_set() or (self._event is not None and self._event.is_set()):
            return True
        self._late = self._late or (self._end is not None and self._clock() >= self._end)
        return self._late

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the call is to end, at most so many seconds; whether it is to end."""
        until = None if timeout is None else monotonic() + timeout
        while not self.is_set():
            left = POLL_SECONDS if until is None else min(POLL_SECONDS, until - monotonic())
            if left <= 0:
                return False
            super().wait(left)
        return True

    def check(self) -> None:
        """Raise `DeadlineError` if the time is up, `CancelledError` if the call was cancelled."""
        if self.is_set():
            raise self.reason(CancelledError("the call was cancelled"))

    def reason(self, error: CancelledError) -> CancelledError:
        """A `DeadlineError` in place of the error if the time was up before anybody cancelled the call."""
        if not (self.is_set() and self._late):
            return error
        late = DeadlineError(
            f"the answer was not complete after timeout={self._timeout} seconds",
            member=error.member,
            hint="give it more time, or a smaller max_tokens",
            partial=error.partial,
        )
        late.__cause__ = error
        return late


def check_options(timeout: object = None, cancel: object = None) -> None:
    """Raise `ConfigError` unless these options of a call are a number of seconds above 0 and an event, or None."""
    seconds = isinstance(timeout, int | float) and not isinstance(timeout, bool) and timeout > 0
    if timeout is not None and not seconds:
        raise ConfigError(f"got timeout={timeout!r}, expected a number of seconds above 0, or None")
    if not isinstance(cancel, threading.Event | None):
        raise ConfigError(f"got cancel={cancel!r}, expected a threading.Event, or None")
