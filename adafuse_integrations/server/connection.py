"""The connection to a client: whether it is still there, and events sent to it as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

GONE = 499  # status in logs and metrics of a request whose client has left


class ClientGone(Exception):
    """The client has closed the connection."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for a result, and cancel the work if the client leaves.

    Raises:
        ClientGone: The client has left.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def server_sent(value: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode()


class EventStream(Response):
    """Sends events as they come. If the client leaves or stops reading, the events are closed.

    Args:
        events: Encoded events.
        send_seconds: Time that the client may take to accept an event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], send_seconds: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._send_seconds = events, send_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with contextlib.aclosing(self._events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await while_connected(receive, self._send_all(send))
            except ClientGone:
                logger.info("a client left before the end of its answer")
            except TimeoutError:  # the server closes the connection, since the response is incomplete
                logger.warning("a client did not read its answer for %s seconds", self._send_seconds)

    async def _send_all(self, send: Send) -> None:
        async for event in self._events:
            async with asyncio.timeout(self._send_seconds):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
