"""Latency of a short request beside long ones: the number of passes before its first word."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from adafuse_core import CancelledError, Ensemble, RoundDone, TextDelta
from adafuse_core.engine.device_turns import Turns
from tests.engine.driven_clock import DrivenClock

LONG_ONES = 8
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def ensemble():
    """The small models with a stopped clock, so that each pass waits for all running requests."""
    with Ensemble() as loaded:
        clock = DrivenClock()
        turns = Turns(clock)
        batchers = [member.backend._batcher for member in loaded.members]
        before = [(batcher.turns, batcher._clock) for batcher in batchers]
        for batcher in batchers:
            batcher.turns, batcher._clock = turns, clock
        yield loaded
        clock.stop()
        for batcher, (old_turns, old_clock) in zip(batchers, before, strict=True):
            batcher.turns, batcher._clock = old_turns, old_clock


def passes(ensemble):
    return sum(member.backend.model.forwards for member in ensemble.members)


def passes_to_first_word(ensemble):
    before = passes(ensemble)
    stream = ensemble.stream(QUESTION)
    next(event for event in stream if isinstance(event, TextDelta))
    used = passes(ensemble) - before
    stream.close()
    return used


@pytest.mark.parametrize("words", [5, 200], ids=["short prompts", "long prompts"])
def test_short_requests_are_not_delayed_by_long_ones(ensemble, words):
    alone = passes_to_first_word(ensemble)
    cancel, rounds, ready = threading.Event(), [], threading.Semaphore(0)

    def answer(number):
        last = passes(ensemble)
        for event in ensemble.stream(f"{number} reasons, " * words, max_new_tokens=4000, cancel=cancel):
            if isinstance(event, RoundDone):
                rounds.append(passes(ensemble) - last)
                last = passes(ensemble)
                ready.release()

    with ThreadPoolExecutor(LONG_ONES) as threads:
        running = [threads.submit(answer, number) for number in range(LONG_ONES)]
        for _ in range(LONG_ONES if words == 5 else 1):  # with long prompts, most of which are still being prefilled
            ready.acquire()
        beside = passes_to_first_word(ensemble)
        cancel.set()
        assert all(isinstance(future.exception(), CancelledError) for future in running)
    assert beside <= 3 * alone + alone  # a round takes no more passes than the time to the first word
