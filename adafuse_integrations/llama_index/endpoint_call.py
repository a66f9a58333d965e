"""One call of an LLM endpoint: start, threads, responses, and reports to `on_word`."""

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
from adafuse_integrations.common.running_calls import MakePrompt, RunningCalls, answer_events
from adafuse_integrations.common.trace import TraceLevel
from adafuse_integrations.llama_index.answers import Chunk, answer_chunks
from adafuse_integrations.llama_index.events import EnsembleWord, EnsembleWordEvent

dispatcher = get_dispatcher(__name__)

OnWord = Callable[[EnsembleWord], Any]
Response = TypeVar("Response", CompletionResponse, ChatResponse)


class EndpointCall(Generic[Response]):
    """A call of an endpoint. It starts lazily, on the thread that consumes its responses.

    Args:
        ensemble: The ensemble that answers.
        make_prompt: Makes the prompt.
        options: Options of `Ensemble.stream`.
        listeners: Callables that receive each word.
        to_response: Converts a chunk of the answer to a response of the endpoint.
        running_calls: The running calls of the LLM. The call registers itself there.
        retries: How often the generation is restarted if a member fails before the first word.
        threads: Maximum number of concurrent async calls.
        trace: What responses report of each round.
        timeout: Time limit of the call in seconds.
        cancel: The caller's event, which ends the call.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        make_prompt: MakePrompt,
        options: dict[str, Any],
        listeners: Sequence[OnWord],
        to_response: Callable[[Chunk], Response],
        *,
        running_calls: RunningCalls,
        retries: int,
        threads: int,
        trace: TraceLevel,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._running_calls, self._threads = running_calls, threads
        self._limits = timeout, cancel
        self._events = partial(answer_events, ensemble, make_prompt, retries=retries, **options)
        self._to_response: Callable[[Chunk], Response] = to_response
        self._listeners, self._trace, self._logprobs = listeners, trace, options["logprobs"]
        self._span_id = active_span_id.get()  # read here, because a worker thread has no active span

    def result(self) -> Response:
        """Run the call and return the last response."""
        (response,) = deque(self.stream(), maxlen=1)
        return response

    async def aresult(self) -> Response:
        """Async form of `result`."""
        async for response in self.astream():  # noqa: B007 - only the last response is needed
            pass
        return response

    def stream(self) -> Generator[Response, None, None]:
        """Yield the responses as they arrive. Generation runs on the consumer's thread."""
        with self._running_calls.track(*self._limits) as cancel:
            yield from self._responses(cancel)

    async def astream(self) -> AsyncGenerator[Response, None]:
        """Yield the responses as they arrive. Generation runs on a worker thread."""
        with self._running_calls.track(*self._limits) as cancel:
            start = partial(self._responses, cancel)
            async with contextlib.aclosing(self._running_calls.on_thread(start, cancel, self._threads)) as responses:
                async for response in responses:
                    yield response

    def _responses(self, cancel: Cancellation) -> Iterator[Response]:
        with contextlib.closing(self._events(cancel=cancel)) as events:
            for chunk in answer_chunks(events, self._report, trace=self._trace, logprobs=self._logprobs):
                yield self._to_response(chunk)

    def _report(self, number: int, played: Round) -> None:
        word = EnsembleWord.of(number, played)
        dispatcher.event(EnsembleWordEvent(word=word, span_id=self._span_id))
        for listener in self._listeners:
            listener(word)


def checked_listeners(given: OnWord | Sequence[OnWord] | None) -> tuple[OnWord, ...]:
    """The `on_word` callables as a tuple.

    Raises:
        ConfigError: An item is not callable, or is an async function.
    """
    listeners = (given,) if callable(given) else tuple(given or ())
    for listener in listeners:
        if not callable(listener) or inspect.iscoroutinefunction(listener):
            raise ConfigError(f"got {listener!r} as on_word, expected a callable", hint="it must not be async")
    return listeners
