"""Answers several prompts concurrently, one thread per request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import TypeVar

from adafuse_core.errors import AdaFuseError, CancelledError
from adafuse_core.events import Event
from adafuse_core.generation import Generation, collect

PromptT = TypeVar("PromptT")


def run_batch(
    prompts: Sequence[PromptT],
    stream: Callable[[PromptT], Generator[Event]],
    max_concurrency: int,
    *,
    return_exceptions: bool,
) -> list[Generation] | list[Generation | Exception]:
    """Generate answers concurrently, in the order of the prompts; see `Ensemble.batch`.

    Args:
        prompts: Any number of prompts.
        stream: Starts the answer to a prompt.
        max_concurrency: Maximum number of threads.
        return_exceptions: Whether the result contains the exceptions of failed prompts.
    """
    failed = threading.Event()

    def events(prompt: PromptT) -> Iterator[Event]:
        if failed.is_set():
            raise _another_failed()
        with closing(stream(prompt)) as streamed:
            for event in streamed:
                if failed.is_set():
                    streamed.throw(_another_failed())  # the stream adds its partial answer to the error
                yield event

    def run(prompt: PromptT) -> Generation | Exception:
        try:
            return collect(events(prompt))
        except Exception as error:
            if return_exceptions:
                return error
            raise

    with ThreadPoolExecutor(max_concurrency) as threads:
        running = [threads.submit(run, prompt) for prompt in prompts]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException as error:
            failed.set()
            if isinstance(error, AdaFuseError):
                error.partials = tuple(map(_partial, running))
            raise
    return [future.result() for future in running]


def _another_failed() -> CancelledError:
    return CancelledError("another prompt of the batch failed")


def _partial(running: Future[Generation | Exception]) -> Generation | None:
    """The answer to a prompt, complete or partial. Waits for its thread."""
    error = running.exception()
    if error is None:
        answer = running.result()
        return answer if isinstance(answer, Generation) else None
    return error.partial if isinstance(error, AdaFuseError) else None
