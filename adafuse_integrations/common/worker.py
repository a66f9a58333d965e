"""Worker threads that run blocking iterators for event loops, never on the loop itself or its default executor."""

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

_STARTED, _DONE = object(), object()


class Worker:
    """A thread pool that runs blocking iterators on behalf of event loops.

    A dispatcher thread starts the pool's threads on demand. The event loop does not start them, because it would wait
    for the interpreter lock at each start. A forked child process starts its own threads.

    Args:
        threads: Maximum number of concurrent iterators; further iterators wait.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Drop the queue of the parent process."""
        self._lock = threading.Lock()
        self._queue: SimpleQueue[Work | None] | None = None

    async def iterate(self, start: Callable[[], Iterator[Item]], cancel: Cancellation) -> AsyncGenerator[Item]:
        """Yield the items of a blocking iterator as they arrive, and raise its errors.

        Closing the generator or cancelling its task sets `cancel`, without waiting for the iterator to end.

        Args:
            start: Makes the iterator. It is called and consumed on one worker thread, in a copy of the caller's
                context.
            cancel: The iterator must raise within a step once this is set. A call that waits for a thread ends at once.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Any] = asyncio.Queue()

        def send(item: Any, error: BaseException | None = None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(items.put_nowait, (item, error))

        def drive() -> None:
            try:
                cancel.raise_if_set()
                send(_STARTED)
                iterator = start()
                with contextlib.closing(iterator):  # type: ignore[type-var]
                    for item in iterator:
                        send(item)
                send(_DONE)
            except BaseException as error:
                send(_DONE, error)

        self._started_queue().put(partial(contextvars.copy_context().run, drive))
        try:
            item, error = await _first_item(items, cancel)
            while error is None and item is not _DONE:
                if item is not _STARTED:
                    yield item
                item, error = await items.get()
            if error is not None:
                raise error
        except (
            BaseException
        ):  # also if the consumer stops early; not after the last item: several iterators may share a call
            cancel.set()
            raise

    def _started_queue(self) -> SimpleQueue[Work | None]:
        """The queue of waiting work; the first call starts the dispatcher thread."""
        with self._lock:
            if self._queue is None:
                self._queue = SimpleQueue()
                weakref.finalize(self, self._queue.put, None)
                threading.Thread(target=_dispatch, args=[self._queue, self.threads], daemon=True).start()
            return self._queue


def _dispatch(queue: SimpleQueue[Work | None], threads: int) -> None:
    """Submit the work in a queue to a thread pool, in order, until the queue yields None."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="adafuse")
    while (work := queue.get()) is not None:
        pool.submit(work)
        del work  # it holds the model, whose end puts None into the queue
    pool.shutdown(wait=False)


async def _first_item(items: asyncio.Queue[Any], cancel: Cancellation) -> Any:
    """Wait for the first item, which a worker thread sends when it starts the call; raise if the call must end."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                return await items.get()
        cancel.raise_if_set()
