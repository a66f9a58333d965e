"""What adapters share: deadlines, retries, threads, choice of members, settings without secrets."""

from __future__ import annotations

import asyncio
import contextvars
import json
import pickle
import threading

import pytest

from adafuse_core import CancelledError, ConfigError, DeadlineError, MemberConfig, MemberError
from adafuse_core.events import TextDelta
from adafuse_integrations.common.deadline import Deadline
from adafuse_integrations.common.identity import plain
from adafuse_integrations.common.retries import with_retries
from adafuse_integrations.common.selection import selected, with_token
from adafuse_integrations.common.worker import Worker

LONG = 30.0  # seconds that only a test which fails waits


class Clock:
    """A clock that tells what it is set to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# --- deadlines ---


def test_time_runs_from_the_beginning_of_a_call_not_of_its_work():
    clock, cancel = Clock(), threading.Event()
    deadline = Deadline(60.0, clock)
    clock.now += 61.0  # spent waiting for a thread
    with pytest.raises(DeadlineError, match=r"timeout=60\.0 seconds.*\nHint"), deadline.enforced(cancel):  # noqa: PT012
        assert cancel.wait(LONG)
        raise CancelledError("cancelled", member="left")


def test_a_deadline_that_is_not_reached_cancels_nothing():
    cancel = threading.Event()
    with Deadline(60.0).enforced(cancel):
        pass
    with pytest.raises(CancelledError) as caught, Deadline(60.0).enforced(cancel):
        raise CancelledError("by somebody else")
    assert not isinstance(caught.value, DeadlineError)
    assert not cancel.is_set()


def test_without_seconds_there_is_no_deadline():
    cancel, clock = threading.Event(), Clock()
    deadline = Deadline(None, clock)
    clock.now += 1e9
    with deadline.enforced(cancel):
        assert not cancel.is_set()


# --- retries ---


class Tries:
    """A generation that fails so often, before or after its first event."""

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


def test_what_fails_before_its_first_event_is_begun_again():
    tries = Tries(2)
    assert [event.text for event in with_retries(tries, 2)] == ["0", "1", "2"]
    assert (tries.begun, tries.closed) == (3, 3)


@pytest.mark.parametrize(
    ("tries", "begun"),
    [(Tries(3), 3), (Tries(1, events_before=1), 1), (Tries(1, error=ConfigError), 1)],
    ids=["too often", "after an event", "by the caller's mistake"],
)
def test_other_failures_are_raised(tries, begun):
    with pytest.raises((MemberError, ConfigError), match="no memory left"):
        list(with_retries(tries, 2))
    assert (tries.begun, tries.closed) == (begun, begun)


def test_closing_reaches_the_generation():
    tries = Tries(0)
    events = with_retries(tries, 2)
    next(events)
    events.close()
    assert (tries.begun, tries.closed) == (1, 1)


# --- threads ---


async def test_no_more_run_at_a_time_than_there_are_threads():
    worker, running, both, release = Worker(2), [], threading.Event(), threading.Event()

    def start(cancel):
        running.append(threading.current_thread())
        if len(running) == 2:
            both.set()
        assert release.wait(LONG)
        yield "done"

    async def answer():
        return [item async for item in worker.iterate(start)]

    tasks = [asyncio.create_task(answer()) for _ in range(5)]
    while not both.is_set():
        await asyncio.sleep(0.001)
    assert len(running) == 2  # the others wait, or they would run by now: threads start before they are waited for
    release.set()
    assert await asyncio.gather(*tasks) == [["done"]] * 5
    assert len(set(running)) == 2


async def test_a_stream_runs_in_the_context_of_its_caller_and_closes_its_iterator():
    value, closed = contextvars.ContextVar("value"), threading.Event()
    value.set("of the caller")

    def start(cancel):
        try:
            yield value.get()
            assert cancel.wait(LONG)
        finally:
            closed.set()

    stream = Worker(1).iterate(start)
    assert await anext(stream) == "of the caller"
    await stream.aclose()
    assert await asyncio.to_thread(closed.wait, LONG)


def test_a_pickled_worker_is_a_new_one_of_the_same_size():
    assert pickle.loads(pickle.dumps(Worker(3)))._threads == 3


# --- choice of members ---

MEMBERS = [MemberConfig(model="org/one", name="a"), MemberConfig(model="org/one", name="b"), MemberConfig(model="c")]


@pytest.mark.parametrize(
    ("model", "names"),
    [(None, ["a", "b", "c"]), ("b", ["b"]), ("c+a", ["c", "a"]), ("org/one", ["a", "b"]), ("a+org/one", ["a", "b"])],
)
def test_members_are_chosen_by_their_names_or_models(model, names):
    assert [member.label for member in selected(MEMBERS, model)] == names


def test_a_member_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"no member 'd'.*\n.*a, b, c"):
        selected(MEMBERS, "a+d")


def test_a_token_goes_to_members_that_have_none_and_are_no_part_of_the_package():
    own = MemberConfig(model="x", model_kwargs={"token": "own"})
    small = MemberConfig(model="small:aspen")
    given = [with_token(member, "hf_1").model_kwargs.get("token") for member in (MEMBERS[0], own, small)]
    assert given == ["hf_1", "own", None]
    assert with_token(MEMBERS[0], None) is MEMBERS[0]


# --- settings without secrets ---


def test_settings_become_json_without_their_secrets():
    settings = {"tau": 0.5, "kwargs": {"hf_token": "s3cret", "n": (1, None)}, "api_key": ["s3cret"], "other": {1}}
    told = plain(settings)
    assert told == json.loads(json.dumps(told))
    assert "s3cret" not in str(told)
    assert told["tau"] == 0.5
    assert told["kwargs"]["n"] == [1, None]
    assert told["kwargs"]["hf_token"] != plain({"hf_token": "another"})["hf_token"]
