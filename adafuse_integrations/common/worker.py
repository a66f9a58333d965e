"""Blocking iterators for event loops: generation runs on threads of its own, never on the loop or its executor."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from adafuse_core.forks import renew_after_fork
from adafuse_integrations.common.deadline import POLL_SECONDS, Cancellation

Item = TypeVar("Item")
Work = Callable[[], None]

_BEGUN, _DONE = object(), object()


class Worker:
    """Threads that drive blocking iterators on behalf of event loops.

    Threads start when they are needed, and not on the event loop, which would wait for the interpreter lock at each of
    them. A forked child starts threads of its own.

    Args:
        threads: Most iterators driven at the same time; others wait for their turn.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Begin without threads."""
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Work | None] | None = None

    async def iterate(self, start: Callable[[], Iterator[Item]], cancel: Cancellation) -> AsyncGenerator[Item]:
        """Items of a blocking iterator, in order, as they come; its errors too.

        Closing or cancelling sets `cancel`; the consumer does not wait for the iterator to end.

        Args:
            start: Makes the iterator. Called and consumed on one thread, in a copy of the caller's context.
            cancel: Upon which the iterator is to raise within a step. A call that waits for a thread ends at once.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def send(item: Any, error: BaseException | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                loop.call_soon_threadsafe(items.put_nowait, (item, error))

        def drive() -> None:
            try:
                cancel.check()
                send(_BEGUN)
                iterator = start()
                with contextlib.closing(iterator):  # type: ignore[type-var]
                    for item in iterator:
                        send(item)
                send(_DONE)
            except BaseException as error:
                send(_DONE, error)

        self._waiting().put(partial(contextvars.copy_context().run, drive))
        try:
            item, error = await _first(items, cancel)
            while error is None and item is not _DONE:
                if item is not _BEGUN:
                    yield item
                item, error = await items.get()
            if error is not None:
                raise error
        except BaseException:  # also if the consumer leaves; not at the end, as several iterators may share a call
            cancel.set()
            raise

    def _waiting(self) -> SimpleQueue[Work | None]:
        """What waits for a thread."""
        with self._lock:
            if self._queue is None:
                self._queue = SimpleQueue()
                weakref.finalize(self, self._queue.put, None)
                threading.Thread(target=_hand_out, args=[self._queue, self.threads], daemon=True).start()
            return self._queue


def _hand_out(queue: SimpleQueue[Work | None], threads: int) -> None:
    """Give what is in a queue to threads, in order, until None comes."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="adafuse")
    while (work := queue.get()) is not None:
        pool.submit(work)
    pool.shutdown(wait=False)


async def _first(items: asyncio.Queue[Any], cancel: Cancellation) -> Any:
    """What comes once a thread has taken the call."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                return await items.get()
        cancel.check()
