"""Several prompts answered at once, on threads that share the models' passes."""

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
    """Answers in the order of the prompts.

    Args:
        prompts: What is asked.
        stream: Begins the answer to one of them.
        max_concurrency: Most answers at a time.
        return_exceptions: Whether a failing prompt yields its exception in place of an answer. Otherwise the
            first failure cancels the other prompts and is raised.
    """
    failed = threading.Event()

    def events(prompt: PromptT) -> Iterator[Event]:
        if failed.is_set():
            raise _another_failed()
        with closing(stream(prompt)) as streamed:
            for event in streamed:
                if failed.is_set():
                    streamed.throw(_another_failed())  # the stream raises it with what was written so far
                yield event

    def answered(prompt: PromptT) -> Generation | Exception:
        try:
            return collect(events(prompt))
        except Exception as error:
            if return_exceptions:
                return error
            raise

    with ThreadPoolExecutor(max_concurrency) as threads:
        running = [threads.submit(answered, prompt) for prompt in prompts]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException as error:
            failed.set()
            if isinstance(error, AdaFuseError):
                error.partials = tuple(map(_written, running))
            raise
    return [future.result() for future in running]


def _another_failed() -> CancelledError:
    return CancelledError("another prompt of the batch failed")


def _written(running: Future[Generation | Exception]) -> Generation | None:
    """What a prompt was answered, once its answer has ended in one way or another."""
    error = running.exception()
    if error is None:
        answer = running.result()
        return answer if isinstance(answer, Generation) else None
    return error.partial if isinstance(error, AdaFuseError) else None
