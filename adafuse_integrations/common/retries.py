"""Another try for calls that failed before anybody saw a part of the answer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from adafuse_core.errors import MemberError
from adafuse_core.events import Event


def with_retries(begin: Callable[[], Generator[Event]], retries: int) -> Generator[Event]:
    """The events of a generation, which is begun again if a member fails before its first event.

    Args:
        begin: Begins the generation.
        retries: How often it may be begun again.

    Raises:
        MemberError: A member failed in the last try, or after an event.
    """
    for retries_left in reversed(range(retries + 1)):
        told = False
        try:
            with closing(begin()) as events:
                for event in events:
                    told = True
                    yield event
            return
        except MemberError:
            if told or not retries_left:
                raise
