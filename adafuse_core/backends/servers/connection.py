"""Calls to the HTTP server of a model: one pool of connections, retries with a deadline, typed errors.

What is sent and received is JSON; its meaning is the caller's. Calls run on an event loop in a thread of their own, so
that the connections of a cancelled request are closed at once. Servers then stop working for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError as Cancelled
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from adafuse_core.backends.base import freed
from adafuse_core.backends.servers.errors import Refused, Unanswered, failure, given_up, shown
from adafuse_core.forks import renew_after_fork

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Json = Any
Check = Callable[[], Coroutine[Any, Any, None]]

_POLL_SECONDS = 0.05  # between two checks whether the request was cancelled
_FIRST_DELAY = 0.1  # seconds before the first retry; doubled for every further one
_LONGEST_DELAY = 2.0
_CONNECT_SECONDS = 10.0  # in which a connection is made, or it is tried again
_ERRORS_OF_A_USABLE_SERVER = 4  # of one call: a server that answers everything else will not answer this


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server is, and how long to wait for it.

    Args:
        base_url: URL of the routes in OpenAI's format, such as `http://127.0.0.1:8000/v1`.
        api_key: Sent as a bearer token.
        timeout: Seconds for one attempt of a call.
        deadline: Seconds after the first failed attempt in which a call is repeated.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float
    deadline: float

    @property
    def root(self) -> str:
        """URL of the server's other routes."""
        return self.base_url.removesuffix("/v1")


class Server:
    """Calls to one server. Any method may be called by several threads at once."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._check: Check | None = None
        self._closed = False
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start anew in a forked child, which has no thread, and must not use the connections of its parent."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: AsyncOpenAI | None = None
        self._running: set[asyncio.Task[Any]] = set()

    def check_after_outages(self, check: Check) -> None:
        """Run a check before a failed call is repeated: another server may have taken the place of the first one."""
        self._check = check

    def post_all(
        self, path: str, bodies: Sequence[Mapping[str, Any]], raise_if_cancelled: Callable[[], None] = lambda: None
    ) -> list[Json]:
        """Send several requests at once, and repeat those that fail; returns the answers in order.

        Args:
            path: Path below `base_url`, or a URL.
            bodies: The requests.
            raise_if_cancelled: Called several times a second. If it raises, the connections are closed.

        Raises:
            ContextOverflowError: A prompt is too long.
            MemberError: The server refused a request, or did not answer within the deadline.
        """

        def every() -> Coroutine[Any, Any, list[Json]]:
            return together(*(self._persistently(partial(self.post, path, body)) for body in bodies))

        return self.run(every, raise_if_cancelled)

    def run_persistently(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Run a coroutine of several calls, from its start again if one of them fails. Errors as of `post_all`."""
        return self.run(lambda: self._persistently(work))

    async def get(self, url: str) -> Json:
        """The answer to one request, without retries. Raises `Refused` or `Unanswered`."""
        return await self._attempt("get", url, {})

    async def post(self, url: str, body: Mapping[str, Any]) -> Json:
        """The answer to one request, without retries. Raises `Refused` or `Unanswered`."""
        return await self._attempt("post", url, {"body": body})

    def run(
        self, work: Callable[[], Coroutine[Any, Any, Result]], raise_if_cancelled: Callable[[], None] = lambda: None
    ) -> Result:
        """Run a coroutine on the event loop, and wait for its result."""
        raise_if_cancelled()
        running = self._started(work)
        while True:
            try:
                return running.result(_POLL_SECONDS)
            except NotDone:
                if running.done():
                    return running.result()
                _cancel_if_cancelled(running, raise_if_cancelled)
            except Cancelled:
                raise freed() from None

    def close(self) -> None:
        """Close the connections and end the thread. May be called twice."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._disconnected(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _started(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Future[Result]:
        with self._lock:
            if self._closed:
                raise freed()
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="adafuse-server", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    async def _tracked(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await work()
        finally:
            self._running.discard(task)

    async def _disconnected(self) -> None:
        """End all calls and connections. The tasks of other libraries are left to these, which the calls wait for."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def _persistently(self, call: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of a call, which is repeated while the server can't be reached."""
        outage = _Outage(self.address)
        while True:
            try:
                return await call()
            except Refused as error:
                raise failure(error, self.address.base_url) from error
            except Unanswered as error:
                await outage.wait(error)
            outage.usable += await self._is_usable() and outage.reached

    async def _is_usable(self) -> bool:
        """Whether the server answers. Raises an error if it is another one than at the start."""
        try:
            if self._check is not None:
                await self._check()
        except Unanswered:
            return False
        except Refused as error:
            raise failure(error, self.address.base_url) from error
        return True

    async def _attempt(self, method: str, url: str, options: Mapping[str, Any]) -> Json:
        """One call by the client of openai, which adds the API key."""
        import httpx
        import openai

        secret = self.address.api_key
        try:
            answer = await getattr(self._connected(), method)(url, cast_to=httpx.Response, **options)
            return answer.json()
        except openai.APIStatusError as error:
            text = shown(_message(error.response), secret)
            if error.status_code >= 500:
                raise Unanswered(f"HTTP {error.status_code}: {text}", reached=True) from None
            raise Refused(error.status_code, text) from None
        except openai.APIError as error:  # no connection, or a timeout
            if isinstance(error, openai.APITimeoutError):
                raise Unanswered(f"no answer within {self.address.timeout:g} seconds") from None
            cause = error.__cause__ or error
            raise Unanswered(shown(f"{type(cause).__name__}: {cause}", secret)) from None
        except ValueError:
            raise Refused(answer.status_code, f"not JSON: {shown(answer.text, secret)!r}") from None

    def _connected(self) -> AsyncOpenAI:
        """The client, which belongs to the event loop."""
        if self._client is None:
            import httpx
            from openai import AsyncOpenAI

            seconds = self.address.timeout
            self._client = AsyncOpenAI(
                base_url=self.address.base_url,
                api_key=self.address.api_key or "none",
                timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
                max_retries=0,
            )
        return self._client


class _Outage:
    """The failed attempts of one call."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._attempts = 0
        self._started = 0.0
        self._delay = _FIRST_DELAY
        self.reached = False  # whether the last attempt had an answer
        self.usable = 0  # attempts that had one, from a server that answers other calls

    async def wait(self, error: Unanswered) -> None:
        """Wait before the next attempt. Raises `MemberError` at the deadline."""
        if not self._attempts:
            self._started = time.monotonic()
            logger.warning("no answer from %s, trying again: %s", self._address.base_url, error)
        self._attempts += 1
        self.reached = error.reached
        seconds = time.monotonic() - self._started
        if seconds + self._delay > self._address.deadline or self.usable >= _ERRORS_OF_A_USABLE_SERVER:
            raise given_up(error, self._address.base_url, self._attempts, seconds) from error
        await asyncio.sleep(self._delay * random.uniform(0.5, 1))
        self._delay = min(2 * self._delay, _LONGEST_DELAY)


async def together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of calls that run at the same time. If one fails, the others are cancelled; none is left running."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _cancel_if_cancelled(running: Future[Any], raise_if_cancelled: Callable[[], None]) -> None:
    try:
        raise_if_cancelled()
    except BaseException:
        running.cancel()
        raise


def _message(answer: Any) -> str:
    """The message in the body of an error."""
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return str(answer.text)
