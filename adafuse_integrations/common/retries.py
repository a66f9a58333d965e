"""Retries of calls that fail before their first event."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from adafuse_core.errors import MemberError
from adafuse_core.events import Event
from adafuse_integrations.common.deadline import Cancellation


def with_retries(start: Callable[[], Generator[Event]], retries: int, cancel: Cancellation) -> Generator[Event]:
    """Yield the events of a generation, and restart the generation if a member fails before the first event.

    Args:
        start: Starts the generation.
        retries: Maximum number of restarts. Only retryable errors cause a restart.
        cancel: Ends the call, also between two attempts.

    Raises:
        MemberError: A member failed in the last attempt, after an event, or with an error that is not retryable.
        CancelledError: The call was cancelled.
        DeadlineError: The call timed out.
    """
    for retries_left in reversed(range(retries + 1)):
        cancel.raise_if_set()
        yielded = False
        try:
            with closing(start()) as events:
                for event in events:
                    yielded = True
                    yield event
            return
        except MemberError as error:
            if yielded or not retries_left or not error.retryable:
                raise
