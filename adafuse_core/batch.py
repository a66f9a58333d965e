"""Several prompts answered at once, on threads that share the models' passes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import TypeVar

from adafuse_core.errors import CancelledError
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

    def go_on() -> None:
        if failed.is_set():
            raise CancelledError("another prompt of the batch failed")

    def events(prompt: PromptT) -> Iterator[Event]:
        go_on()
        with closing(stream(prompt)) as streamed:
            for event in streamed:
                go_on()
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
        except BaseException:
            failed.set()
            raise
    return [future.result() for future in running]
