"""Running generations: lazy start, any thread, event loops, cancellation."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adafuse_core import CancelledError
from adafuse_integrations.llama_index import AdaFuseLLM
from tests.integrations.llama_index.conftest import (
    ENDPOINTS,
    STREAMS,
    Heartbeat,
    begin,
    crew,
    let,
    respond,
    scripted,
    text_of,
)
from tests.integrations.stepped import LONG, stopped, until

LONG_REPLY = " ".join(f"word{number}" for number in range(400))
SYNC_STREAMS = [name for name in STREAMS if not name.startswith("a")]
ASYNC_STREAMS = [name for name in STREAMS if name.startswith("a")]


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_25_nothing_runs_before_the_first_next(endpoint):
    llm, member = scripted()
    stream = begin(llm, endpoint)
    if endpoint.startswith("a"):
        stream = await stream
    assert member.prompts == []
    assert not llm._running_calls
    del stream
    assert (await respond(llm, endpoint))[-1].raw["finish_reason"] == "stop"


@pytest.mark.parametrize("endpoint", SYNC_STREAMS)
def test_24_closing_stops_within_a_word(endpoint):
    llm, member = scripted(LONG_REPLY)
    stream = begin(llm, endpoint)
    next(stream)
    assert member.running
    stream.close()
    assert not any(other.running for other in crew(llm))
    assert member.drafts <= 2
    assert not llm._running_calls
    assert llm.complete("again").text == LONG_REPLY


def test_24_closing_frees_the_memory_of_models(pair):
    llm = AdaFuseLLM(members=pair)
    stream = llm.stream_complete("The quick")
    next(stream)
    assert sum(member.backend.tokens_held() for member in crew(llm)) > 0
    stream.close()
    assert sum(member.backend.tokens_held() for member in crew(llm)) == 0


@pytest.mark.parametrize("endpoint", ASYNC_STREAMS)
async def test_24_closing_an_async_stream_stops_within_a_word(endpoint):
    llm, member = scripted(LONG_REPLY, steps=1)
    stream = await begin(llm, endpoint)
    await anext(stream)
    await stream.aclose()
    await stopped(*crew(llm))
    assert member.drafts == 1
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_24_leaving_a_loop_over_a_stream_stops_within_a_word(endpoint):
    llm, member = scripted(LONG_REPLY, steps=1)
    stream = begin(llm, endpoint)
    if endpoint.startswith("a"):
        async for _ in await stream:
            break
    else:
        for _ in stream:
            break
    del stream
    await stopped(*crew(llm))
    assert member.drafts == 1
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", ["acomplete", "achat", *ASYNC_STREAMS])
async def test_24_cancelling_a_task_stops_within_a_word(endpoint):
    llm, member = scripted(LONG_REPLY, steps=3)
    task = asyncio.create_task(respond(llm, endpoint))
    await until(lambda: member.drafts == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopped(*crew(llm))
    assert member.drafts == 3
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", ["complete", "chat", *SYNC_STREAMS])
def test_24_cancel_stops_generations_on_other_threads(endpoint):
    llm, member = scripted(LONG_REPLY, steps=4)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(asyncio.run, respond(llm, endpoint)) for _ in range(2)]
        asyncio.run(until(lambda: member.drafts == 4 and len(member.running) == 2))
        llm.cancel()
        for run in runs:
            with pytest.raises(CancelledError):
                run.result(timeout=LONG)
    assert member.drafts == 4
    assert not member.running
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", ["acomplete", "achat", *ASYNC_STREAMS])
async def test_24_cancel_raises_in_async_consumers(endpoint):
    llm, member = scripted(LONG_REPLY, steps=2)
    task = asyncio.create_task(respond(llm, endpoint))
    await until(lambda: member.drafts == 2)
    llm.cancel()
    with pytest.raises(CancelledError):
        await asyncio.wait_for(task, LONG)
    await stopped(*crew(llm))
    assert member.drafts == 2


@pytest.mark.parametrize("endpoint", ["achat", "astream_complete"])
async def test_24_cancel_ends_a_call_that_waits_for_a_thread(endpoint):
    llm, member = scripted(LONG_REPLY, steps=0, llm={"max_async_requests": 4})
    tasks = [asyncio.create_task(respond(llm, endpoint)) for _ in range(9)]
    await until(lambda: len(member.running) == 4)
    assert len(member.prompts) == 4
    llm.cancel()
    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG)
    assert {type(end) for end in ends} == {CancelledError}
    assert member.drafts == 0
    assert not llm._running_calls


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_24_a_callback_may_cancel(endpoint):
    llm, member = scripted(LONG_REPLY)
    llm.on_word = lambda _: llm.cancel()
    with pytest.raises(CancelledError):
        await respond(llm, endpoint)
    assert member.drafts <= 2


def test_cancel_of_a_copy_leaves_the_original_alone():
    llm, _ = scripted("one two three")
    stream = llm.stream_complete("go")
    next(stream)
    llm.model_copy().cancel()
    assert [chunk.delta for chunk in stream] == [" two", " three", ""]


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_04_the_first_word_arrives_long_before_the_last(endpoint):
    llm, member = scripted("one two three", steps=1)
    stream = begin(llm, endpoint)
    if endpoint.startswith("a"):
        stream = await stream
        first = await anext(stream)
        assert (text_of(first), member.drafts) == ("one", 1)
        let(llm, 2)
        rest = [chunk async for chunk in stream]
    else:
        first = next(stream)
        assert (text_of(first), member.drafts) == ("one", 1)
        let(llm, 2)
        rest = list(stream)
    assert text_of(rest[-1]) == "one two three"


@pytest.mark.parametrize("endpoint", ["acomplete", "achat", *ASYNC_STREAMS])
async def test_03_the_event_loop_is_not_blocked(endpoint):
    llm, _ = scripted("one two three four five six seven eight", delay=0.02)
    beats = []
    for _ in range(40):  # other processes may block it, too, but not every time
        async with Heartbeat() as beat:
            await asyncio.gather(*(respond(llm, endpoint) for _ in range(3)))
        beats.append(beat.longest)
        if min(beats) < 0.05:
            break
    assert min(beats) < 0.05


async def test_28_five_concurrent_calls_answer_like_sequential_calls(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=4)
    prompts = [f"Number {number} is" for number in range(5)]
    alone = [llm.complete(prompt).text for prompt in prompts]
    together = await asyncio.gather(*(llm.acomplete(prompt) for prompt in prompts))
    assert [answer.text for answer in together] == alone
    streams = await asyncio.gather(*(respond(llm, "astream_complete", prompt) for prompt in prompts))
    assert [text_of(stream[-1]) for stream in streams] == alone
    with ThreadPoolExecutor(5) as pool:
        assert [answer.text for answer in pool.map(llm.complete, prompts)] == alone


def test_28_two_interleaved_streams_on_one_thread_do_not_block_each_other(pair):
    llm = AdaFuseLLM(members=pair, max_new_tokens=12)
    alone = [llm.complete(prompt).text for prompt in ("The quick", "Grüße")]
    first, second = llm.stream_complete("The quick"), llm.stream_complete("Grüße")
    texts = ["", ""]
    running = {0: first, 1: second}
    while running:
        for index, stream in list(running.items()):
            chunk = next(stream, None)
            if chunk is None:
                del running[index]
            else:
                texts[index] = chunk.text
    assert texts == alone


def test_26_a_stream_may_be_made_on_one_thread_and_consumed_on_another():
    llm, _ = scripted("one two three")
    stream = llm.stream_complete("go")
    texts = []
    thread = threading.Thread(target=lambda: texts.extend(chunk.delta for chunk in stream))
    thread.start()
    thread.join(5)
    assert "".join(texts) == "one two three"


def test_27_gradient_mode_of_the_consumer_is_left_alone(pair):
    llm = AdaFuseLLM(members=pair[:1], max_new_tokens=8)
    for _ in llm.stream_complete("The quick"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_25_an_abandoned_stream_does_not_block_other_calls():
    llm, _ = scripted("one two three")
    abandoned = llm.stream_complete("go")
    next(abandoned)
    assert llm.complete("go").text == "one two three"
    assert [chunk.delta for chunk in abandoned] == [" two", " three", ""]
