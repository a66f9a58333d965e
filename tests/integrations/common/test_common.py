"""The code that adapters share: timeouts, retries, threads, member selection, redaction."""

from __future__ import annotations

import asyncio
import contextvars
import json
import pickle
import threading
from functools import partial

import pytest

from adafuse_core import CancelledError, ConfigError, DeadlineError, MemberConfig, MemberError
from adafuse_core.events import TextDelta
from adafuse_integrations.common.deadline import Cancellation, check_call_options
from adafuse_integrations.common.redaction import redacted
from adafuse_integrations.common.retries import with_retries
from adafuse_integrations.common.running_calls import RunningCalls
from adafuse_integrations.common.selection import select_members, with_token
from adafuse_integrations.common.worker import Worker

LONG = 30.0  # seconds; only a failing test waits that long


class Clock:
    """A clock that tests set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# --- deadlines ---


def test_the_timeout_starts_with_the_call():
    clock = Clock()
    cancel = Cancellation(60.0, clock=clock)
    clock.now += 59.9  # spent waiting for a thread
    assert not cancel.is_set()
    cancel.raise_if_set()
    clock.now += 0.1
    assert cancel.is_set()
    assert cancel.wait(LONG)
    with pytest.raises(DeadlineError, match=r"timeout=60\.0 seconds.*\nHint"):
        cancel.raise_if_set()
    late = cancel.resolve(CancelledError("cancelled", member="left"))
    assert isinstance(late, DeadlineError)
    assert isinstance(late, TimeoutError)
    assert late.member == "left"
    assert pickle.loads(pickle.dumps(late)).message == late.message


def test_a_cancellation_before_the_deadline_is_not_a_timeout():
    clock, event = Clock(), threading.Event()
    by_event, by_itself = Cancellation(60.0, event, clock), Cancellation(60.0, clock=clock)
    event.set()
    by_itself.set()
    clock.now += 1e9
    for cancel in (by_event, by_itself):
        with pytest.raises(CancelledError) as caught:
            cancel.raise_if_set()
        assert not isinstance(caught.value, DeadlineError)
    assert not Cancellation(60.0, clock=clock).is_set()


def test_without_a_timeout_there_is_no_deadline():
    clock = Clock()
    cancel = Cancellation(None, clock=clock)
    clock.now += 1e9
    assert not cancel.is_set()
    assert not cancel.wait(0.001)


@pytest.mark.parametrize("way", ["set", "event", "time"])
def test_waiting_ends_as_soon_as_the_call_does(way):
    event = threading.Event()
    cancel = Cancellation(0.02 if way == "time" else LONG, event)
    if way != "time":
        threading.Timer(0.02, cancel.set if way == "set" else event.set).start()
    assert cancel.wait(LONG)
    assert event.is_set() is (way == "event")


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": -1.5}, {"timeout": "1"}, {"timeout": True}, {"cancel": True}]
)
def test_options_of_a_call_are_checked(options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}, expected"):
        check_call_options(**options)
    check_call_options(0.5, threading.Event())
    check_call_options(None, None)


def test_a_name_cancels_its_calls_and_no_name_cancels_all():
    calls = RunningCalls()
    with calls.track(None, names=("a", "x")) as first, calls.track(None, names=("b", "x")) as second:
        assert calls.cancel("c") == 0
        assert calls.cancel("b") == 1
        assert (first.is_set(), second.is_set()) == (False, True)
        assert calls.cancel("x") == 2
        assert first.is_set()
    with calls.track(None) as third:
        assert calls.cancel() == 1
        assert third.is_set()
    assert not calls
    assert calls.cancel() == 0


# --- retries ---


class Tries:
    """A generation whose first attempts fail, before or after their first event."""

    def __init__(self, failures, *, events_before=0, error=MemberError):
        self.begun, self.closed = 0, 0
        self._failures, self._events_before, self._error = failures, events_before, error

    def __call__(self):
        self.begun += 1
        fails = self.begun <= self._failures
        try:
            for number in range(self._events_before if fails else 3):
                yield TextDelta(text=str(number))
            if fails:
                raise self._error("no memory left")
        finally:
            self.closed += 1


def test_a_generation_that_fails_before_its_first_event_is_restarted():
    tries = Tries(2)
    assert [event.text for event in with_retries(tries, 2, Cancellation())] == ["0", "1", "2"]
    assert (tries.begun, tries.closed) == (3, 3)


@pytest.mark.parametrize(
    ("tries", "begun"),
    [
        (Tries(3), 3),
        (Tries(1, events_before=1), 1),
        (Tries(1, error=ConfigError), 1),
        (Tries(1, error=partial(MemberError, retryable=False)), 1),
    ],
    ids=["too often", "after an event", "by the caller's mistake", "as it would again"],
)
def test_other_failures_are_raised(tries, begun):
    with pytest.raises((MemberError, ConfigError), match="no memory left"):
        list(with_retries(tries, 2, Cancellation()))
    assert (tries.begun, tries.closed) == (begun, begun)


def test_no_retry_starts_after_the_timeout():
    clock = Clock()
    cancel, tries = Cancellation(60.0, clock=clock), Tries(5)

    def late():
        clock.now += 40.0
        yield from tries()

    with pytest.raises(DeadlineError):
        list(with_retries(late, 5, cancel))
    assert tries.begun == 2


def test_closing_reaches_the_generation():
    tries = Tries(0)
    events = with_retries(tries, 2, Cancellation())
    next(events)
    events.close()
    assert (tries.begun, tries.closed) == (1, 1)


# --- threads ---


async def test_concurrent_calls_are_limited_by_the_number_of_threads():
    worker, running, both, release = Worker(2), [], threading.Event(), threading.Event()

    def start():
        running.append(threading.current_thread())
        if len(running) == 2:
            both.set()
        assert release.wait(LONG)
        yield "done"

    async def answer():
        return [item async for item in worker.iterate(start, Cancellation())]

    tasks = [asyncio.create_task(answer()) for _ in range(5)]
    while not both.is_set():
        await asyncio.sleep(0.001)
    assert len(running) == 2  # the other calls wait for a thread
    release.set()
    assert await asyncio.gather(*tasks) == [["done"]] * 5
    assert len(set(running)) == 2


async def test_a_stream_runs_in_the_context_of_its_caller_and_closes_its_iterator():
    value, closed = contextvars.ContextVar("value"), threading.Event()
    value.set("of the caller")
    cancel = Cancellation()

    def start():
        try:
            yield value.get()
            assert cancel.wait(LONG)
        finally:
            closed.set()

    stream = Worker(1).iterate(start, cancel)
    assert await anext(stream) == "of the caller"
    await stream.aclose()
    assert await asyncio.to_thread(closed.wait, LONG)


@pytest.mark.parametrize("way", ["set", "event", "time"])
async def test_a_call_that_waits_for_a_thread_ends_at_once(way):
    worker, release, event = Worker(1), threading.Event(), threading.Event()

    def start(number):
        begun.append(number)
        assert release.wait(LONG)
        yield number

    async def answer(number, cancel):
        return [item async for item in worker.iterate(partial(start, number), cancel)]

    begun = []
    first = asyncio.create_task(answer(1, Cancellation()))
    cancel = Cancellation(0.03 if way == "time" else None, event)
    second = asyncio.create_task(answer(2, cancel))
    third = asyncio.create_task(answer(3, Cancellation()))
    while not begun:
        await asyncio.sleep(0.001)
    if way != "time":
        (cancel if way == "set" else event).set()
    with pytest.raises(DeadlineError if way == "time" else CancelledError):
        await asyncio.wait_for(second, LONG)
    assert not first.done()
    release.set()
    assert await asyncio.gather(first, third) == [[1], [3]]
    assert begun == [1, 3]


# --- choice of members ---

MEMBERS = [MemberConfig(model="org/one", name="a"), MemberConfig(model="org/one", name="b"), MemberConfig(model="c")]


@pytest.mark.parametrize(
    ("model", "names"),
    [(None, ["a", "b", "c"]), ("b", ["b"]), ("c+a", ["c", "a"]), ("org/one", ["a", "b"]), ("a+org/one", ["a", "b"])],
)
def test_members_are_chosen_by_their_names_or_models(model, names):
    assert [member.label for member in select_members(MEMBERS, model)] == names


def test_a_member_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"no member 'd'.*\n.*a, b, c"):
        select_members(MEMBERS, "a+d")


def test_a_token_is_added_to_members_without_one_except_bundled_models():
    own = MemberConfig(model="x", model_kwargs={"token": "own"})
    small = MemberConfig(model="small:aspen")
    given = [with_token(member, "hf_1").model_kwargs.get("token") for member in (MEMBERS[0], own, small)]
    assert given == ["hf_1", "own", None]
    assert with_token(MEMBERS[0], None) is MEMBERS[0]


# --- settings without secrets ---


def test_settings_become_json_without_their_secrets():
    settings = {"tau": 0.5, "kwargs": {"hf_token": "s3cret", "n": (1, None)}, "api_key": ["s3cret"], "other": {1}}
    told = redacted(settings)
    assert told == json.loads(json.dumps(told))
    assert "s3cret" not in str(told)
    assert told["tau"] == 0.5
    assert told["kwargs"]["n"] == [1, None]
    assert told["kwargs"]["hf_token"] != redacted({"hf_token": "another"})["hf_token"]
