"""How generations begin and report their words."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import active_span_id

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Round
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.common.runs import Runs, events
from adafuse_integrations.common.trace import TraceLevel
from adafuse_integrations.llama_index.answers import Chunk, chunks
from adafuse_integrations.llama_index.events import EnsembleWord, EnsembleWordEvent
from adafuse_integrations.llama_index.prompts import Ask

dispatcher = get_dispatcher(__name__)

OnWord = Callable[[EnsembleWord], Any]
Response = TypeVar("Response", CompletionResponse, ChatResponse)


class Call(Generic[Response]):
    """A call of an endpoint. It begins lazily, on whichever thread consumes its responses.

    Args:
        ensemble: Who answers.
        ask: What they are shown.
        options: Of `Ensemble.stream`.
        listeners: Called with each word.
        form: Makes responses.
        runs: The calls of the LLM, to which this one belongs.
        retries: How often the generation is begun again if a member fails before the first word.
        threads: Most async calls that run at the same time.
        trace: What responses tell of the rounds.
        timeout: Most seconds that the call may take.
        cancel: The caller's event, which ends it.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        ask: Ask,
        options: dict[str, Any],
        listeners: Sequence[OnWord],
        form: Callable[[Chunk], Response],
        *,
        runs: Runs,
        retries: int,
        threads: int,
        trace: TraceLevel,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._runs, self._threads = runs, threads
        self._bounds = timeout, cancel
        self._begin = partial(events, ensemble, ask, retries=retries, **options)
        self._form: Callable[[Chunk], Response] = form
        self._listeners, self._trace, self._logprobs = listeners, trace, options["logprobs"]
        self._span_id = active_span_id.get()  # of this call; on another thread it would be lost

    def last(self) -> Response:
        """The last response."""
        (response,) = deque(self.here(), maxlen=1)
        return response

    async def awaited(self) -> Response:
        """The last response, without holding up the event loop."""
        async for response in self.on_thread():  # noqa: B007 - the last one is wanted
            pass
        return response

    def here(self) -> Generator[Response, None, None]:
        """The responses as they come, on the thread that consumes them."""
        with self._runs.call(*self._bounds) as cancel:
            yield from self._responses(cancel)

    async def on_thread(self) -> AsyncGenerator[Response, None]:
        """The responses as they come, on a thread of its own."""
        with self._runs.call(*self._bounds) as cancel:
            start = partial(self._responses, cancel)
            async with contextlib.aclosing(self._runs.on_thread(start, cancel, self._threads)) as responses:
                async for response in responses:
                    yield response

    def _responses(self, cancel: Cancellation) -> Iterator[Response]:
        with contextlib.closing(self._begin(cancel=cancel)) as streamed:
            for chunk in chunks(streamed, self._announce, trace=self._trace, logprobs=self._logprobs):
                yield self._form(chunk)

    def _announce(self, number: int, played: Round) -> None:
        word = EnsembleWord.of(number, played)
        dispatcher.event(EnsembleWordEvent(word=word, span_id=self._span_id))
        for listener in self._listeners:
            listener(word)


def checked_listeners(given: OnWord | Sequence[OnWord] | None) -> tuple[OnWord, ...]:
    """The `on_word` callables as a tuple.

    Raises:
        ConfigError: One is no callable, or async.
    """
    listeners = (given,) if callable(given) else tuple(given or ())
    for listener in listeners:
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise ConfigError(f"got {listener!r} as on_word, expected a plain callable", hint="it can't be async")
    return listeners
