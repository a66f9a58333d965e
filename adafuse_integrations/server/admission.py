"""The requests that run, and those that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque

from adafuse_core.errors import DeadlineError
from adafuse_integrations.server.errors import RATE, SERVER, ApiError

_MOST_RETRY_SECONDS = 60
_WEIGHT = 0.1  # of the newest answer in the mean duration


class Slot:
    """The right of one request to run."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self._released = False

    def release(self) -> None:
        """Let the next request run. May be called on any thread, and twice."""
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._admission.leave(time.monotonic() - self._since)


class Admission:
    """Bounds the requests that run at the same time; further ones wait in order. Used on one event loop.

    Args:
        max_running: Requests that run.
        max_queue: Requests that wait.
    """

    def __init__(self, max_running: int, max_queue: int) -> None:
        self.running = 0
        self._max_running, self._max_queue = max_running, max_queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 1.0
        self.is_closed = False

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._waiting)

    async def enter(self, seconds: float | None) -> Slot:
        """Wait until the request may run.

        Args:
            seconds: Longest time to wait; None for no limit.

        Raises:
            ApiError: Too many requests wait, or the server is stopping.
            DeadlineError: The time is over.
        """
        if self.is_closed:
            raise _stopping()
        if self.running < self._max_running:
            self.running += 1
            return Slot(self)
        if len(self._waiting) >= self._max_queue:
            raise ApiError(
                429,
                f"{self.running} requests are running and {len(self._waiting)} are waiting: try again later",
                kind=RATE,
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self._retry_seconds())},
            )
        await self._turn(seconds)
        return Slot(self)

    async def _turn(self, seconds: float | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._next()  # the turn came, but the request is gone
            if isinstance(error, TimeoutError):
                raise DeadlineError(f"the request waited for {seconds} seconds and did not start") from error
            raise

    def leave(self, seconds: float) -> None:
        """A request has ended; the next one may run.

        Args:
            seconds: Time that the request has run.
        """
        self._mean_seconds += _WEIGHT * (seconds - self._mean_seconds)
        self._next()

    def close(self) -> None:
        """Refuse the requests that wait and all later ones."""
        self.is_closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(_stopping())

    def _next(self) -> None:
        """Give the place of a request that has ended to the first one that waits."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _retry_seconds(self) -> int:
        expected = self._mean_seconds * (len(self._waiting) + 1) / self._max_running
        return min(_MOST_RETRY_SECONDS, max(1, math.ceil(expected)))


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", kind=SERVER, code="shutting_down")
