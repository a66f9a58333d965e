"""Another try for calls that failed before anybody saw a part of the answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from adafuse_core.errors import MemberError
from adafuse_core.events import Event
from adafuse_integrations.common.deadline import Cancellation


def with_retries(begin: Callable[[], Generator[Event]], retries: int, cancel: Cancellation) -> Generator[Event]:
    """The events of a generation, which is begun again if a member fails before its first event.

    Args:
        begin: Begins the generation.
        retries: How often it may be begun again, if another try can help.
        cancel: Ends the tries.

    Raises:
        MemberError: A member failed in the last try, after an event, or in a way that another try does not change.
        CancelledError: The call was cancelled, or its time is up.
    """
    for retries_left in reversed(range(retries + 1)):
        cancel.check()
        told = False
        try:
            with closing(begin()) as events:
                for event in events:
                    told = True
                    yield event
            return
        except MemberError as error:
            if told or not retries_left or not error.retryable:
                raise
