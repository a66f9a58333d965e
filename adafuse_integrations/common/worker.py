"""Blocking iterators for event loops: generation runs on threads of its own, never on the loop or its executor."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

_DONE = object()


class Worker:
    """A few threads that drive blocking iterators on behalf of event loops.

    Threads start with the first use. Copies and pickles are new workers.

    Args:
        threads: Most iterators driven at the same time; others wait for their turn. Each thread more makes an event
            loop wait longer for the interpreter lock.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    async def iterate(
        self, start: Callable[[threading.Event], Iterator[Item]], cancel: threading.Event | None = None
    ) -> AsyncGenerator[Item]:
        """Items of a blocking iterator, in order, as they come; its errors too.

        Closing or cancelling sets the event, upon which the iterator is to raise within a step; the
        consumer does not wait for it.

        Args:
            start: Makes the iterator, given the event. Called and consumed on one thread, in a copy
                of the caller's context.
            cancel: The event, for callers that want to set it themselves.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()
        cancel = cancel or threading.Event()

        def send(item: Any, error: BaseException | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                loop.call_soon_threadsafe(items.put_nowait, (item, error))

        def drive() -> None:
            try:
                iterator = start(cancel)
                with contextlib.closing(iterator):  # type: ignore[type-var]
                    for item in iterator:
                        send(item)
                send(_DONE)
            except BaseException as error:
                send(_DONE, error)

        future = self._executor().submit(contextvars.copy_context().run, drive)
        try:
            while True:
                item, error = await items.get()
                if error is not None:
                    raise error
                if item is _DONE:
                    return
                yield item
        finally:
            cancel.set()
            future.cancel()

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="adafuse")
            return self._pool

    def __reduce__(self) -> tuple[Any, ...]:
        return Worker, (self._threads,)
