"""What both adapters promise, asked of both: they can't drift apart.

What only one framework knows (LangChain's chunks and callbacks, LlamaIndex's completions and events) is tested beside
that adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import pickle
import threading
from datetime import date

import pytest
from pydantic import BaseModel

from adafuse_core import CancelledError, ConfigError, DeadlineError, MemberError, ScriptedMember
from tests.integrations.frameworks import FRAMEWORKS
from tests.integrations.stepped import Stepped, until

TEXT = "Paris is the capital of France.\nGrüße, 日本 👩‍👩‍👧!"
THOUGHT = "<think>\nA: or B: I compare.\n</think>\n\nA: is right."


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.name)
def adapter(request):
    return request.param


def pair(reply=TEXT, *, kind=ScriptedMember, **options):
    return [kind(name, reply, margin=0.0, **options) for name in ("left", "right")]


def weather(city: str) -> str:
    """Get the weather in a city."""
    return f"17 degrees in {city}"


def clock(zone: str) -> str:
    """Get the time."""
    return "14:05"


def called(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


class Trip(BaseModel):
    city: str
    day: date
    nights: int


TRIP = '{"city": "Oslo", "day": "2026-11-28", "nights": 3}'


# --- text ---


async def test_all_ways_to_ask_give_the_text_to_the_byte(adapter):
    assert await adapter.answers(adapter.on(*pair())) == [TEXT] * 4


async def test_stop_strings_end_the_text_and_are_left_out(adapter):
    llm = adapter.on(*pair())
    assert await adapter.answers(llm, stop=["capital of F"]) == ["Paris is the "] * 4
    answer = adapter.ask(llm, stop=["capital of F"])
    assert (answer.reason, answer.stop) == ("stop", "capital of F")


async def test_a_thought_is_no_part_of_the_text(adapter):
    llm = adapter.on(*pair(THOUGHT))
    assert await adapter.answers(llm) == ["A: is right."] * 4
    assert "I compare." in adapter.ask(llm).thought


# --- usage and trace ---


async def test_usage_is_counted_per_member_and_told_of_the_first(adapter):
    llm = adapter.on(*pair("one two three"))
    for answer in (adapter.ask(llm), await adapter.aask(llm)):
        assert answer.usage == answer.by_member["left"] == answer.by_member["right"]
        assert answer.usage[1] == 3


def test_the_token_budget_ends_the_answer_and_is_told(adapter):
    answer = adapter.ask(adapter.on(*pair()), max_tokens=2)
    assert (answer.text, answer.reason, answer.usage[1]) == ("Paris is", "length", 2)


def test_without_trace_nothing_tells_of_rounds(adapter):
    assert not adapter.ask(adapter.on(*pair(), trace=False)).rounds


def test_metadata_is_plain_json(adapter):
    metadata = adapter.ask(adapter.on(*pair())).metadata
    assert json.loads(json.dumps(metadata)) == metadata


# --- options ---

OPTIONS = {"max_new_tokens": 3, "max_tokens": 3, "stop": ["capital"], "seed": 4, "logprobs": True}


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_option_of_a_call_does_what_it_does_in_the_constructor(adapter, name):
    option = {name: OPTIONS[name]}
    plain = {} if "tokens" in name else {"max_new_tokens": None}
    by_call = await adapter.answers(adapter.on(*pair()), **option)
    by_constructor = await adapter.answers(adapter.kind.from_ensemble(ensemble_of(adapter, *pair()), **plain, **option))
    assert by_call == by_constructor
    assert (by_call == [TEXT] * 4) == (name in ("seed", "logprobs"))


def ensemble_of(adapter, *members):
    llm = adapter.on(*members)
    return getattr(llm, "_given", None) or llm.ensemble


@pytest.mark.parametrize("name", ["temprature", "maximum", "tau"])
def test_an_option_that_a_call_does_not_know_is_refused(adapter, name):
    with pytest.raises(ConfigError, match=name):
        adapter.ask(adapter.on(*pair()), **{name: 1})


def test_an_option_that_a_constructor_does_not_know_is_refused(adapter):
    with pytest.raises(ValueError, match="temprature"):
        adapter.kind(temprature=1)


# --- tools ---


async def test_a_call_is_told_by_name_and_arguments(adapter):
    llm = adapter.on(*pair("Let me see.\n" + called("weather", city="Oslo")))
    for answer in (adapter.ask(llm, tools=[weather, clock]), await adapter.aask(llm, tools=[weather, clock])):
        assert answer.calls == [("weather", {"city": "Oslo"})]
        assert answer.text == "Let me see."
        assert answer.reason == "tool_calls"


@pytest.mark.parametrize("choice", ["any", "required", "weather"])
async def test_a_call_can_be_required(adapter, choice):
    llm = adapter.on(*pair(called("weather", city="Oslo")))
    answer = await adapter.aask(llm, tools=[weather, clock], tool_choice=choice)
    assert answer.calls == [("weather", {"city": "Oslo"})]


def test_several_calls_can_be_ruled_out(adapter):
    both = called("weather", city="Oslo") + "\n" + called("clock", zone="CET")
    llm = adapter.on(*pair(both))
    assert len(adapter.ask(llm, tools=[weather, clock]).calls) == 2
    one = adapter.on(*pair(called("weather", city="Oslo")))
    assert len(adapter.ask(one, tools=[weather, clock], parallel_tool_calls=False).calls) == 1


def test_a_choice_of_an_unknown_tool_is_refused(adapter):
    with pytest.raises(ConfigError, match="rain"):
        adapter.ask(adapter.on(*pair()), tools=[weather], tool_choice="rain")


def test_calls_and_results_reach_the_members(adapter):
    left, right = pair("It is cold.")
    conversation = [
        ("user", "Oslo?"),
        ("call", "a1b2c3d4e", "weather", {"city": "Oslo"}),
        ("result", "a1b2c3d4e", "-3"),
    ]
    adapter.ask(adapter.on(left, right), conversation, tools=[weather])
    asked = left.prompts[-1]
    assert [message.role for message in asked] == ["user", "assistant", "tool"]
    assert asked[1].tool_calls[0].arguments == {"city": "Oslo"}
    assert asked[2].content == "-3"


# --- structured output ---


async def test_an_object_is_filled_in(adapter):
    trip = Trip(city="Oslo", day=date(2026, 11, 28), nights=3)
    for reply in (TRIP, called("Trip", **json.loads(TRIP))):
        with contextlib.suppress(MemberError):  # one of both is the form that the framework asks for
            assert adapter.objects(adapter.on(*pair(reply)), Trip) == trip
            assert await adapter.aobjects(adapter.on(*pair(reply)), Trip) == trip
            return
    pytest.fail("neither form is what the framework asks for")


# --- the end of a call ---


def test_a_stream_computes_nothing_before_it_is_asked_and_stops_where_it_is_left(adapter):
    left, right = pair("word ", kind=Stepped, ends_answer=False)
    stream = adapter.stream(adapter.on(left, right))
    assert left.drafts == 0
    seen = [next(stream) for _ in range(3)]
    stream.close()
    assert "".join(seen).startswith("word word ")
    assert not left.running
    assert not right.running


async def test_cancelling_a_task_ends_the_generation(adapter):
    left, right = pair("word ", kind=Stepped, ends_answer=False, steps=2)
    task = asyncio.create_task(adapter.aask(adapter.on(left, right)))
    await until(lambda: left.drafts == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not left.running and not right.running)


def test_an_error_of_a_member_names_it(adapter):
    llm = adapter.on(*pair(fail_after=2))
    seen = []
    with pytest.raises(MemberError, match="left"):
        seen.extend(adapter.stream(llm))
    assert "".join(seen) == "Paris is"


# --- many at once ---


async def test_a_model_can_be_copied_and_pickled_while_its_calls_run_and_after(adapter):
    left, right = pair("word ", kind=Stepped, ends_answer=False, steps=1)
    llm = adapter.on(left, right)
    task = asyncio.create_task(adapter.aask(llm))
    await until(lambda: left.drafts == 1)
    assert copy.deepcopy(llm).cancel() == 0
    assert llm.cancel() == 1
    with pytest.raises(CancelledError):
        await task
    of_models = adapter.kind(max_new_tokens=2)
    answer = (await adapter.aask(of_models)).text
    for twin in (copy.deepcopy(of_models), pickle.loads(pickle.dumps(of_models))):
        assert adapter.ask(twin).text == answer


def test_calls_from_threads_answer_as_one_alone(adapter):
    llm = adapter.on(*pair())
    texts = [None] * 8

    def ask(place):
        texts[place] = adapter.ask(llm).text

    threads = [threading.Thread(target=ask, args=[place]) for place in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXT] * 8


async def test_calls_of_one_event_loop_answer_as_one_alone(adapter):
    llm = adapter.on(*pair())
    answers = await asyncio.gather(*(adapter.aask(llm) for _ in range(8)))
    assert [answer.text for answer in answers] == [TEXT] * 8


def test_time_that_is_up_ends_the_call_with_an_error_that_has_its_text(adapter):
    llm = adapter.on(*pair("word ", ends_answer=False, delay=0.02))
    for option in ({"timeout": 0.2}, {"timeout": 0.2, "max_tokens": 10_000}):
        with pytest.raises(DeadlineError, match=r"timeout=0\.2 seconds") as caught:
            adapter.ask(llm, **option)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.partial.text.startswith("word word")


async def test_time_of_the_constructor_counts_for_every_way_to_ask(adapter):
    llm = adapter.on(*pair("word ", ends_answer=False, delay=0.02), timeout=0.1)
    with pytest.raises(DeadlineError):
        adapter.ask(llm)
    with pytest.raises(DeadlineError):
        await adapter.aask(llm)
    with pytest.raises(DeadlineError):
        list(adapter.stream(llm))
    with pytest.raises(DeadlineError):
        [piece async for piece in adapter.astream(llm)]


@pytest.mark.parametrize("wrong", [0, -1, "soon", True])
def test_a_timeout_that_is_no_time_is_refused(adapter, wrong):
    with pytest.raises(ConfigError, match="timeout"):
        adapter.ask(adapter.on(*pair()), timeout=wrong)


async def test_the_event_of_a_call_ends_that_call_alone(adapter):
    left, right = pair("word ", kind=Stepped, ends_answer=False, steps=2)
    llm, events = adapter.on(left, right), [threading.Event(), threading.Event()]
    tasks = [asyncio.create_task(adapter.aask(llm, cancel=event)) for event in events]
    await until(lambda: left.drafts >= 2)
    events[0].set()
    with pytest.raises(CancelledError):
        await tasks[0]
    assert not tasks[1].done()
    events[1].set()
    with pytest.raises(CancelledError):
        await tasks[1]
    await until(lambda: not left.running and not right.running)


async def test_cancel_ends_all_calls_of_an_object(adapter):
    left, right = pair("word ", kind=Stepped, ends_answer=False, steps=3)
    llm = adapter.on(left, right)
    tasks = [asyncio.create_task(adapter.aask(llm)) for _ in range(3)]
    await until(lambda: left.drafts == 3)
    assert llm.cancel() == 3
    assert [type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == [CancelledError] * 3


class Flaky(ScriptedMember):
    """A member that fails once."""

    failed = False

    def open(self, opening):
        prefix = super().open(opening)
        if not self.failed:
            self.failed = True
            prefix.draft = self.fail
        return prefix

    def fail(self, *_, **__):
        raise MemberError("no memory left", member=self.name)


def test_a_call_that_failed_before_its_first_word_is_tried_again(adapter):
    assert adapter.ask(adapter.on(*pair(kind=Flaky), max_retries=2)).text == TEXT
    with pytest.raises(MemberError, match="no memory left"):
        adapter.ask(adapter.on(*pair(kind=Flaky)))


# --- thoughts and stop strings ---


async def test_a_stop_string_sleeps_in_a_thought(adapter):
    llm = adapter.on(*pair(THOUGHT))
    for stop, text in (("B:", "A: is right."), ("\n", "A: is right."), ("right", "A: is ")):
        assert await adapter.answers(llm, stop=[stop]) == [text] * 4


@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_stop_string_sleeps_in_a_call(adapter, choice):
    llm = adapter.on(*pair(called("weather", city="Oslo")))
    answer = adapter.ask(llm, tools=[weather], tool_choice=choice, stop=["\n", "city"])
    assert (answer.calls, answer.reason) == ([("weather", {"city": "Oslo"})], "tool_calls")


# --- what the library wrote itself ---


def test_a_call_that_the_budget_cuts_is_invalid_unless_it_may_be_completed(adapter, caplog):
    long = called("weather", city=" ".join(["Oslo"] * 40))
    answer = adapter.ask(adapter.on(*pair(long)), tools=[weather], tool_choice="weather", max_tokens=20)
    (error,) = answer.invalid
    assert not answer.calls
    assert "budget" in error
    assert answer.reason == "length"
    assert answer.metadata["library_text"]
    assert "in the members' place" in caplog.text
    completed = adapter.ask(
        adapter.on(*pair(long)), tools=[weather], tool_choice="weather", max_tokens=20, complete_calls=True
    )
    ((name, arguments),) = completed.calls
    assert name == "weather"
    assert arguments["city"].startswith("Oslo")
    assert completed.metadata["library_text"]


def test_an_answer_that_the_members_wrote_is_not_marked(adapter):
    llm = adapter.on(*pair(called("weather", city="Oslo")))
    for answer in (adapter.ask(llm, tools=[weather]), adapter.ask(adapter.on(*pair()))):
        assert "library_text" not in answer.metadata


# --- calls in every form ---

FORMS = (
    '{"name": "weather", "arguments": {"city": "Oslo"}}',
    '```json\n{"name": "weather", "arguments": {"city": "Oslo"}}\n```',
    '[{"name": "weather", "parameters": {"city": "Oslo"}}]',
    '<function=weather>{"city": "Oslo"}</function>',
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]',
    '{"function_call": {"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}}',
)


@pytest.mark.parametrize("reply", FORMS)
async def test_an_answer_that_is_a_call_in_another_form_is_read_as_one(adapter, reply):
    llm = adapter.on(*pair(reply))
    for answer in (adapter.ask(llm, tools=[weather]), await adapter.aask(llm, tools=[weather])):
        assert (answer.text, answer.calls) == ("", [("weather", {"city": "Oslo"})])
    assert adapter.ask(llm, tools=[weather], lenient_tool_calls=False).text == reply
    assert adapter.ask(llm, tools=[clock]).text == reply  # that tool is not among those given
    prose = adapter.on(*pair("Write " + reply))
    assert not adapter.ask(prose, tools=[weather]).calls or "<tool_call>" in reply


@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_call_is_not_made_twice(adapter, choice):
    again = "\n".join([called("weather", city="Oslo")] * 6)
    answer = adapter.ask(adapter.on(*pair(again)), tools=[weather], tool_choice=choice)
    assert (answer.calls, answer.reason) == ([("weather", {"city": "Oslo"})], "tool_calls")


# --- histories ---

ORDERS = (
    [("user", "Hi"), ("assistant", "Hello."), ("system", "Be brief."), ("user", "Oslo?")],
    [("user", "Hi"), ("assistant", "Hello.")],
    [("assistant", "Hello, I am here."), ("user", "Oslo?")],
    [("user", "Hi"), ("user", "Oslo?")],
    [("system", "One."), ("system", "Two."), ("user", "Oslo?")],
    [("user", "Hi"), ("assistant", ""), ("user", "Oslo?")],
)


@pytest.mark.parametrize("conversation", ORDERS, ids=lambda order: "-".join(role for role, _ in order))
def test_whatever_the_order_of_roles_there_is_an_answer(adapter, conversation):
    left, right = pair()
    assert adapter.ask(adapter.on(left, right), conversation).text == TEXT
    assert adapter.count(adapter.on(left, right), conversation) > 0


# --- traces, loading, hints ---


def test_a_trace_is_a_summary_by_default_and_whole_where_it_is_asked_for(adapter):
    summary = adapter.ask(adapter.on(*pair()))
    full = adapter.ask(adapter.on(*pair(), trace="full"))
    assert "".join(word["text"] for word in summary.metadata["words"]) == TEXT
    assert summary.metadata["members"] == ["left", "right"]
    assert len(full.rounds) == len(summary.metadata["words"])
    assert all(
        len(played["candidates"]) == row["of"]
        for played, row in zip(full.rounds, summary.metadata["words"], strict=True)
    )


def test_models_can_be_loaded_and_warmed_before_the_first_call(adapter):
    left, right = pair()
    llm = adapter.on(left, right)
    assert llm.load() is llm
    assert left.drafts == 0
    assert llm.warm() is llm
    assert left.drafts > 0


HINTS = {"temprature": "temperature", "top_p": "temperature", "max_new_token": "max_new_tokens", "xyzzy": None}


@pytest.mark.parametrize("name", HINTS)
def test_an_unknown_option_is_named_alike_in_constructor_and_call(adapter, name):
    llm = adapter.on(*pair())
    messages = []
    for attempt in (lambda: adapter.kind(**{name: 1}), lambda: adapter.ask(llm, **{name: 1})):
        with pytest.raises(ValueError, match=name) as caught:
            attempt()
        messages.append(str(caught.value))
    for message in messages:
        hint = HINTS[name]
        assert ("did you mean" not in message) if hint is None else (hint in message), message
