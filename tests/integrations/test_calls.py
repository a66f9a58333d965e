"""Calls of both adapters: timeouts, cancellation, and limits on concurrent calls."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelTimeoutError as LangChainTimeout
from langgraph.graph import START, MessagesState, StateGraph
from llama_index.core.llms import ChatMessage
from pydantic import ValidationError

from adafuse_core import CancelledError, ConfigError, DeadlineError, Ensemble, MemberError, ScriptedMember
from adafuse_core.engine.read_request import ReadRequest
from adafuse_integrations.langchain import AdaFuseLLM as LangChainLLM
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM as LlamaIndexLLM
from tests.integrations.stepped import LONG, Stepped, stopped, until

KINDS = (ChatAdaFuse, LangChainLLM, LlamaIndexLLM)
SYNC, ASYNC = ("whole", "stream"), ("awaited", "astream")
WAYS = (*SYNC, *ASYNC)
NAMES = {  # names of the entry points: in LangChain, and in LlamaIndex for text and for messages
    "whole": ("invoke", "complete", "chat"),
    "stream": ("stream", "stream_complete", "stream_chat"),
    "awaited": ("ainvoke", "acomplete", "achat"),
    "astream": ("astream", "astream_complete", "astream_chat"),
}


@pytest.fixture(params=KINDS, ids=["ChatAdaFuse", "LangChain LLM", "LlamaIndex LLM"])
def kind(request):
    return request.param


def of(kind, *members, **options):
    """A model with these members."""
    return kind.from_ensemble(Ensemble(members=members), **options)


def endless(kind, *, steps, **options):
    """A model that writes one word per permitted step and then waits, and its member."""
    member = Stepped("a", "word ", margin=0.0, ends_answer=False, steps=steps)
    return of(kind, member, **{"max_new_tokens": None, **options}), member


def begun(llm, way, chat=False, **options):
    """A call by one of the entry points: a response, a stream, or an awaitable."""
    name = NAMES[way][0 if not isinstance(llm, LlamaIndexLLM) else 1 + chat]
    return getattr(llm, name)([ChatMessage(content="go")] if chat else "go", **options)


async def asked(llm, way, seen=None, **options):
    """All responses of a call, as a list. Sync calls run on this thread."""
    result = begun(llm, way, **options)
    if way in SYNC:
        items = iter([result] if way == "whole" else result)
        return [keep(item, seen) for item in items]
    if way == "awaited":
        return [await result]
    stream = await result if inspect.iscoroutine(result) else result
    return [keep(item, seen) async for item in stream]


def keep(item, seen):
    if seen is not None:
        seen.append(item)
    return item


def said(items):
    """The text of all responses or chunks. Each response of LlamaIndex holds the text so far."""
    if any(hasattr(item, "delta") for item in items):
        return items[-1].text
    return "".join(item if isinstance(item, str) else item.text for item in items)


class Clock:
    """A clock that tests set by hand."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock that timeouts use."""
    clock = Clock()
    monkeypatch.setattr("adafuse_integrations.common.deadline.monotonic", clock)
    return clock


# --- timeouts ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("of_call", [True, False])
async def test_a_timeout_ends_a_call_within_a_step(kind, clock, way, of_call):
    class Late(ScriptedMember):
        def count_draft(self):
            super().count_draft()
            clock.now += 25.0

    member = Late("a", "word ", margin=0.0, ends_answer=False)
    options = {"timeout": 60}
    llm = of(kind, member, max_new_tokens=None, **({} if of_call else options))
    seen = []
    with pytest.raises(DeadlineError, match=r"timeout=60(\.0)? seconds.*\nHint") as caught:
        await asked(llm, way, seen, **(options if of_call else {}))
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, CancelledError)
    assert isinstance(caught.value, LangChainTimeout) is (kind is not LlamaIndexLLM)
    assert (said(seen) if seen else "").split() == (["word"] * 2 if "stream" in way else [])
    assert member.drafts == 3
    assert not llm._running_calls


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_that_is_not_reached_changes_nothing(kind, way):
    llm = of(kind, ScriptedMember("a", "one two three"), timeout=LONG)
    for options in ({}, {"timeout": None}, {"timeout": 2 * LONG}):
        assert said(await asked(llm, way, **options)) == "one two three"


@pytest.mark.parametrize("way", WAYS)
async def test_options_of_a_call_are_checked_before_it_runs(kind, way):
    llm, member = endless(kind, steps=0)
    for wrong in ({"timeout": 0}, {"timeout": "soon"}, {"timeout": True}, {"cancel": "now"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            await asked(llm, way, **wrong)
    for wrong in ({"timeout": -1}, {"max_retries": -1}, {"max_async_requests": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            endless(kind, steps=0, **wrong)
    assert member.prompts == []


@pytest.mark.parametrize("way", ASYNC)
async def test_the_timeout_includes_waiting_for_a_thread(kind, way):
    llm, member = endless(kind, steps=0, max_async_requests=2)
    running = [asyncio.create_task(asked(llm, way)) for _ in range(2)]
    await until(lambda: len(member.running) == 2)
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        await asked(llm, way, timeout=0.1)
    assert time.monotonic() - began < LONG / 2  # running calls would wait forever
    assert len(member.prompts) == 2
    assert len(llm._running_calls) == 2
    llm.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await stopped(member)
    member.let(3)
    assert said(await asked(llm, way, max_new_tokens=1)).startswith("word")


class Slow:
    """Members whose loading blocks until the test releases it."""

    def __init__(self, monkeypatch):
        self.asked, self.opened = threading.Event(), threading.Event()
        load = Ensemble.members.fget

        def members(ensemble):
            self.asked.set()
            assert self.opened.wait(LONG)
            return load(ensemble)

        monkeypatch.setattr(Ensemble, "members", property(members))


@pytest.mark.parametrize("way", WAYS)
async def test_the_timeout_includes_loading_which_continues_after_it(kind, way, monkeypatch):
    slow, llm = Slow(monkeypatch), kind(members=["small:aspen"], max_new_tokens=2)
    with pytest.raises(DeadlineError):
        await asked(llm, way, timeout=0.1)
    assert slow.asked.is_set()
    slow.opened.set()
    assert said(await asked(llm, way)) != ""


@pytest.mark.parametrize("way", WAYS)
async def test_the_timeout_includes_waiting_for_memory(kind, way):
    """Another active sequence occupies the whole KV cache."""
    llm = kind(members=[{"model": "small:aspen", "max_kv_tokens": 200}], max_new_tokens=None)
    (member,) = (llm._get_ensemble() if kind is not LlamaIndexLLM else llm.ensemble).members
    batcher = member.backend._batcher
    holder = batcher.open((1, 2, 3))
    with batcher.call(holder):  # so that it is not idle
        batcher.read(ReadRequest(holder, [tuple(range(3, 150))]), lambda: None)
        with pytest.raises(DeadlineError):
            await asked(llm, way, timeout=0.2)
    await until(lambda: len(batcher._last_used) == 1)
    assert not batcher._queue
    batcher.close(holder)
    assert said(await asked(llm, way, max_new_tokens=2)) != ""


@pytest.mark.parametrize("way", ["stream", "astream"])
async def test_the_timeout_of_a_stream_starts_at_its_first_next(kind, clock, way):
    llm = of(kind, ScriptedMember("a", "one two"), timeout=60)
    stream = begun(llm, way)
    if inspect.iscoroutine(stream):
        stream = await stream
    clock.now += 100.0
    items = list(stream) if way == "stream" else [item async for item in stream]
    assert said(items) == "one two"


@pytest.mark.parametrize("way", ["batch", "abatch"])
@pytest.mark.parametrize("kind", KINDS[:2])
async def test_each_item_of_a_batch_has_its_own_timeout(kind, way):
    """The third item never ends."""
    member = Stepped("a", lambda prompt: "one", margin=0.0)
    llm = of(kind, member, timeout=LONG)
    endless_llm, _ = endless(kind, steps=0, timeout=0.1)

    def answers(model):
        run = getattr(model, way)(["go"] * 3, return_exceptions=True)
        return run if way == "batch" else asyncio.wait_for(run, LONG)

    fine, late = answers(llm), answers(endless_llm)
    if way == "abatch":
        fine, late = await fine, await late
    assert [said([answer]) for answer in fine] == ["one"] * 3
    assert [type(answer).__name__ for answer in late] == ["ModelTimeoutError"] * 3


@pytest.mark.parametrize("way", WAYS)
async def test_retries_end_at_the_timeout(kind, clock, way):
    class Failing(ScriptedMember):
        def open(self, opening):
            super().open(opening)
            clock.now += 25.0
            raise MemberError("no memory left", member=self.name)

    member = Failing("a", "word")
    llm = of(kind, member, max_retries=5, timeout=60)
    with pytest.raises(DeadlineError):
        await asked(llm, way)
    assert len(member.prompts) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_that_fails_before_the_first_word_is_retried(kind, way):
    class Flaky(ScriptedMember):
        def open(self, opening):
            prefix = super().open(opening)
            if len(self.prompts) < 3:
                raise MemberError("no memory left", member=self.name)
            return prefix

    assert said(await asked(of(kind, Flaky("a", "one"), max_retries=2), way)) == "one"
    with pytest.raises(MemberError, match="no memory left"):
        await asked(of(kind, Flaky("a", "one"), max_retries=1), way)


# --- concurrent calls ---


@pytest.mark.parametrize("way", ASYNC)
async def test_async_calls_run_concurrently_up_to_the_limit(kind, way):
    for limit, running in ((None, 40), (5, 5)):
        llm, member = endless(kind, steps=0, **({} if limit is None else {"max_async_requests": limit}))
        tasks = [asyncio.create_task(asked(llm, way)) for _ in range(40)]
        await until(lambda running=running, member=member: len(member.running) == running)
        assert llm.cancel() == 40
        assert {type(end) for end in await asyncio.gather(*tasks, return_exceptions=True)} == {CancelledError}
        await stopped(member)
        assert member.most == running


# --- cancelling ---


@pytest.mark.parametrize("way", WAYS)
async def test_an_event_cancels_only_its_own_call(kind, way):
    llm, member = endless(kind, steps=0)
    events = [threading.Event(), threading.Event()]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(asyncio.run, asked(llm, way, cancel=event)) for event in events]
        await until(lambda: len(member.running) == 2)
        events[1].set()
        with pytest.raises(CancelledError):
            await asyncio.to_thread(calls[1].result, LONG)
        assert not calls[0].done()
        assert len(llm._running_calls) == 1
        events[0].set()
        with pytest.raises(CancelledError) as caught:
            await asyncio.to_thread(calls[0].result, LONG)
    assert not isinstance(caught.value, DeadlineError)
    assert member.drafts == 0
    assert not llm._running_calls


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_whose_event_is_set_does_not_start(kind, way):
    llm, member = endless(kind, steps=0)
    event = threading.Event()
    event.set()
    with pytest.raises(CancelledError):
        await asked(llm, way, cancel=event)
    assert member.prompts == []


@pytest.mark.parametrize("way", WAYS)
async def test_cancel_ends_all_calls_of_an_object_but_not_of_its_copies(kind, way):
    llm, member = endless(kind, steps=0)
    copied = llm.model_copy()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(asyncio.run, asked(one, way)) for one in (llm, llm, copied)]
        await until(lambda: len(member.running) == 3)
        assert llm.cancel() == 2
        for call in calls[:2]:
            with pytest.raises(CancelledError):
                await asyncio.to_thread(call.result, LONG)
        assert len(member.running) == 1
        assert copied.cancel() == 1
        with pytest.raises(CancelledError):
            await asyncio.to_thread(calls[2].result, LONG)
    assert llm.cancel() == 0


# --- LangChain's runs ---


CHAT_WAYS = {
    "invoke": lambda llm, config: asyncio.to_thread(llm.invoke, "go", config),
    "stream": lambda llm, config: asyncio.to_thread(lambda: list(llm.stream("go", config))),
    "ainvoke": lambda llm, config: llm.ainvoke("go", config),
    "astream": lambda llm, config: drained(llm.astream("go", config)),
    "batch": lambda llm, config: asyncio.to_thread(llm.batch, ["go"], config),
    "abatch": lambda llm, config: llm.abatch(["go"], config),
}


async def drained(stream):
    return [item async for item in stream]


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("by", ["run_id", "tag"])
@pytest.mark.parametrize("way", CHAT_WAYS)
async def test_a_run_is_cancelled_by_its_id_or_a_tag(kind, way, by):
    llm, member = endless(kind, steps=0)
    given = [uuid.uuid4(), uuid.uuid4()]
    configs = [{"run_id": one} if by == "run_id" else {"tags": [str(one), "all"]} for one in given]
    tasks = [asyncio.create_task(CHAT_WAYS[way](llm, config)) for config in configs]
    await until(lambda: len(member.running) == 2)
    assert llm.cancel(uuid.uuid4()) == 0
    assert llm.cancel(given[1] if by == "run_id" else str(given[1])) == 1
    with pytest.raises(CancelledError):
        await asyncio.wait_for(tasks[1], LONG)
    assert not tasks[0].done()
    assert llm.cancel(given[0] if by == "run_id" else "all") == 1
    with pytest.raises(CancelledError):
        await asyncio.wait_for(tasks[0], LONG)
    await stopped(member)
    assert member.drafts == 0


@pytest.mark.parametrize("mode", ["messages", "updates"])
async def test_a_tag_of_a_graph_cancels_the_call_inside(mode):
    """Also after the consumer has left the stream, because LangGraph runs a node to its end on a thread."""
    llm, member = endless(ChatAdaFuse, steps=1)

    def answer(state):
        return {"messages": [llm.bind_tools([]).invoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    graph = builder.compile()

    def consume():
        for _ in graph.stream({"messages": [("user", "go")]}, {"tags": ["user-17"]}, stream_mode=mode):
            break

    task = asyncio.create_task(asyncio.to_thread(consume))
    await until(lambda: member.drafts == 1)
    assert llm.cancel("user-18") == 0
    assert llm.cancel("user-17") == 1
    await asyncio.gather(task, return_exceptions=True)
    await stopped(member)
    assert member.drafts == 1


async def test_run_identifiers_and_events_are_not_in_traces_or_cache_keys():
    class Heard(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, **kwargs):
            seen.append(str(kwargs))

    seen, member = [], ScriptedMember("a", "one")
    llm = of(ChatAdaFuse, member, cache=InMemoryCache())
    config = {"callbacks": [Heard()]}
    for cancel in (None, threading.Event(), threading.Event()):
        assert llm.invoke("go", config, cancel=cancel).text == "one"
    assert len(member.prompts) == 1
    list(llm.stream("go", config, cancel=threading.Event()))
    assert len(seen) == 4
    assert not any("cancel" in told or "_run_names" in told for told in seen)


def test_the_threads_of_a_model_end_with_it(kind):
    before = set(threading.enumerate())
    llm = of(kind, ScriptedMember("a", "one two"))
    assert asyncio.run(asked(llm, "awaited"))
    started = set(threading.enumerate()) - before
    assert started
    del llm
    gc.collect()
    for thread in started:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in started)
