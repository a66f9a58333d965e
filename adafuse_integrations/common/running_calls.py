"""The running calls of one model object: start, threads, cancellation."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from adafuse_core.ensemble import Ensemble
from adafuse_core.errors import CancelledError
from adafuse_core.events import Event
from adafuse_core.forks import renew_after_fork
from adafuse_core.request import PromptLike, until_cancelled
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.common.retries import with_retries
from adafuse_integrations.common.worker import Worker

Item = TypeVar("Item")
MakePrompt = Callable[[Ensemble], PromptLike]  # text or messages, depending on the members' chat templates


class RunningCalls:
    """The calls of one model object that are running or waiting for a thread. Copies of the object have no calls."""

    def __init__(self) -> None:
        self._names: dict[Cancellation, frozenset[str]] = {}
        self._worker: Worker | None = None
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the parent's calls, which do not run in the child process."""
        self._names = {}

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return RunningCalls, ()  # a copy or pickle has no calls

    @contextmanager
    def track(
        self, timeout: float | None, event: threading.Event | None = None, names: Iterable[str] = ()
    ) -> Iterator[Cancellation]:
        """Register a call for the duration of a `with` block.

        Args:
            timeout: Time limit of the call in seconds, counted from now; None for no limit.
            event: The caller's own event, which also ends the call.
            names: Names by which `cancel` finds the call.

        Raises:
            DeadlineError: The call timed out.
        """
        cancel = Cancellation(timeout, event)
        self._names[cancel] = frozenset(names)
        try:
            yield cancel
        except CancelledError as error:
            raise cancel.resolve(error)  # noqa: B904 - `resolve` sets the cause
        finally:
            self._names.pop(cancel, None)

    def cancel(self, name: str | None = None) -> int:
        """Cancel the calls with a name, or all calls, on any thread. Each call ends within one step of the generation.

        Returns:
            Number of cancelled calls.
        """
        found = [cancel for cancel, names in tuple(self._names.items()) if name is None or name in names]
        for cancel in found:
            cancel.set()
        return len(found)

    def on_thread(
        self, start: Callable[[], Iterator[Item]], cancel: Cancellation, threads: int
    ) -> AsyncGenerator[Item]:
        """Run a call on a worker thread and yield its items on the event loop; see `Worker.iterate`."""
        if self._worker is None or self._worker.threads != threads:
            self._worker = Worker(threads)
        return self._worker.iterate(start, cancel)


def answer_events(
    ensemble: Ensemble, make_prompt: MakePrompt, cancel: Cancellation, retries: int, **options: Any
) -> Generator[Event]:
    """Yield the events of an answer. All adapters call the core here. Nothing runs before the first `next()`.

    Args:
        ensemble: The ensemble that answers.
        make_prompt: Makes the prompt. It may load the members' tokenizers.
        cancel: Ends the call within one step, also while models are loading.
        retries: How often the answer is restarted if a member fails before the first event.
        options: Options of `Ensemble.stream`.
    """
    cancel.raise_if_set()
    prompt = make_prompt(ensemble) if ensemble.is_loaded else until_cancelled(partial(make_prompt, ensemble), cancel)
    yield from with_retries(lambda: ensemble.stream(prompt, cancel=cancel, **options), retries, cancel)
