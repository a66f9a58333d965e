"""The generations of one LLM: how they begin, report their words, and are stopped."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.span import active_span_id

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Round
from adafuse_integrations.common.trace import TraceLevel
from adafuse_integrations.common.worker import Worker
from adafuse_integrations.llama_index.answers import Chunk, chunks
from adafuse_integrations.llama_index.events import EnsembleWord, EnsembleWordEvent
from adafuse_integrations.llama_index.prompts import Ask

dispatcher = get_dispatcher(__name__)

_THREADS = 4  # async calls at a time; each more makes an event loop wait longer for the interpreter lock

OnWord = Callable[[EnsembleWord], Any]
Response = TypeVar("Response", CompletionResponse, ChatResponse)
Start = Callable[[threading.Event], Iterator[Response]]  # begins a generation that the event cancels


class Runs:
    """What of an LLM is running at the moment. Never copied: a copy of an LLM has runs of its own."""

    def __init__(self) -> None:
        self._cancels: set[threading.Event] = set()
        self._worker = Worker(_THREADS)

    def __len__(self) -> int:
        return len(self._cancels)

    def cancel(self) -> None:
        """Stop them all, on any thread, within a step."""
        for cancel in tuple(self._cancels):
            cancel.set()

    def prepare(
        self,
        ensemble: Ensemble,
        ask: Ask,
        options: dict[str, Any],
        listeners: Sequence[OnWord],
        form: Callable[[Chunk], Response],
        *,
        trace: TraceLevel,
    ) -> Start[Response]:
        """A generation that begins lazily, on whichever thread consumes it.

        Args:
            ensemble: Who answers.
            ask: What they are shown.
            options: Of `Ensemble.stream`.
            listeners: Called with each word.
            form: Makes responses.
            trace: What they tell of the rounds.
        """
        span_id = active_span_id.get()  # of this call; on another thread it would be lost

        def announce(number: int, played: Round) -> None:
            word = EnsembleWord.of(number, played)
            dispatcher.event(EnsembleWordEvent(word=word, span_id=span_id))
            for listener in listeners:
                listener(word)

        def start(cancel: threading.Event) -> Iterator[Response]:
            self._cancels.add(cancel)
            try:
                events = ensemble.stream(ask(ensemble), cancel=cancel, **options)
                with contextlib.closing(events):
                    for chunk in chunks(events, announce, trace=trace, logprobs=options["logprobs"]):
                        yield form(chunk)
            finally:
                self._cancels.discard(cancel)

        return start

    async def on_worker(self, start: Start[Response]) -> AsyncGenerator[Response, None]:
        """The responses of a generation that runs on a worker thread."""
        cancel = threading.Event()
        self._cancels.add(cancel)  # what waits for a thread can be stopped too
        try:
            async with contextlib.aclosing(self._worker.iterate(start, cancel)) as responses:
                async for response in responses:
                    yield response
        finally:
            self._cancels.discard(cancel)


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
