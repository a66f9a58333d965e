"""The calls of one model object: how they begin, where they run, how they are cancelled."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import CancelledError
from adafuse_core.events import Event
from adafuse_core.forks import renew_after_fork
from adafuse_core.request import PromptLike, until_cancelled
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.common.retries import with_retries
from adafuse_integrations.common.worker import Worker

Item = TypeVar("Item")

OF_CALLS = ("timeout", "cancel")  # options of a call that are no generation options


class CallFields(BaseModel):
    """Options of calls that all adapters have."""

    timeout: float | None = Field(
        default=None, gt=0, description="Most seconds that a call may take, waiting included. Also an option of a call."
    )
    max_retries: int = Field(
        default=0, ge=0, description="How often a call is tried again if a member fails before the first word."
    )
    max_async_requests: int = Field(
        default=128,
        ge=1,
        description="Most async requests that run at the same time, each on a thread; the others wait. How many of "
        "them share passes is bounded by the memory for keys and values (`max_kv_tokens`).",
    )


class Runs:
    """The calls that are running, or wait for a thread. Never copied: a copy of a model object has runs of its own."""

    def __init__(self) -> None:
        self._running: dict[Cancellation, frozenset[str]] = {}
        self._worker: Worker | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """The parent's calls do not run here."""
        self._running = {}

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def call(
        self, timeout: float | None, event: threading.Event | None = None, names: Iterable[str] = ()
    ) -> Iterator[Cancellation]:
        """Around one call, which ends when it is cancelled or its time is up.

        Args:
            timeout: Seconds that it may take from now on.
            event: The caller's own, which cancels it too.
            names: By which `cancel` finds it.

        Raises:
            DeadlineError: The time was up.
        """
        cancel = Cancellation(timeout, event)
        self._running[cancel] = frozenset(names)
        try:
            yield cancel
        except CancelledError as error:
            raise cancel.reason(error)  # noqa: B904 - the reason knows its cause
        finally:
            self._running.pop(cancel, None)

    def cancel(self, name: str | None = None) -> int:
        """Cancel the calls of a name, or all of them, on any thread, within a step.

        Returns:
            How many there were.
        """
        found = [cancel for cancel, names in tuple(self._running.items()) if name is None or name in names]
        for cancel in found:
            cancel.set()
        return len(found)

    def on_thread(
        self, start: Callable[[], Iterator[Item]], cancel: Cancellation, threads: int
    ) -> AsyncGenerator[Item]:
        """The items of a call that runs on a thread of its own, for an event loop; see `Worker.iterate`."""
        if self._worker is None or self._worker.threads != threads:
            self._worker = Worker(threads)
        return self._worker.iterate(start, cancel)


def events(
    ensemble: Ensemble, ask: Callable[[Ensemble], PromptLike], cancel: Cancellation, retries: int, **options: Any
) -> Generator[Event]:
    """The events of an answer, and the one way to the core. Nothing runs before the first `next()`.

    Args:
        ensemble: Who answers.
        ask: The prompt, once it is known what the members can read.
        cancel: Ends the call within a step, also while models are loaded.
        retries: How often the answer is begun again if a member fails before its first event.
        options: Of `Ensemble.stream`.
    """
    cancel.check()
    prompt = ask(ensemble) if ensemble.is_loaded else until_cancelled(partial(ask, ensemble), cancel)
    yield from with_retries(lambda: ensemble.stream(prompt, cancel=cancel, **options), retries, cancel)
