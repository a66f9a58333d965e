"""The contract of all eight endpoints: one event, cumulative text, deltas, usage, plain JSON, no side effects."""

from __future__ import annotations

import copy
import json
import re

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage, CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.rate_limiter import BaseRateLimiter

from adafuse_core import Grammar
from adafuse_integrations.llama_index import AdaFuseLLM
from tests.integrations.llama_index.conftest import ENDPOINTS, REPLY, STREAMS, begin, memory, respond, scripted, text_of


def test_01_it_is_a_custom_llm_that_calls_functions():
    assert {CustomLLM, FunctionCallingLLM, BaseLLM} < set(AdaFuseLLM.__mro__)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_no_endpoint_is_inherited(name):
    assert name in vars(AdaFuseLLM)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_02_a_call_is_one_llm_event_with_our_token_counts(endpoint):
    llm, _ = scripted()
    counter = TokenCountingHandler(tokenizer=str.split)
    llm.callback_manager = CallbackManager([counter])
    responses = await respond(llm, endpoint)
    usage = responses[-1].raw["usage"]
    assert len(counter.llm_token_counts) == 1
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(responses[-1].raw["usage_by_member"]) == {"m0", "m1"}
    assert responses[-1].raw["usage_by_member"]["m0"] == usage


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_02_instrumentation_sees_one_start_and_one_end(seen, endpoint):
    llm, _ = scripted()
    await respond(llm, endpoint)
    names = [event.class_name() for event in seen]
    kind = "Completion" if "complete" in endpoint else "Chat"
    assert names.count(f"LLM{kind}StartEvent") == names.count(f"LLM{kind}EndEvent") == 1
    assert not any(name.startswith("LLMChat" if kind == "Completion" else "LLMCompletion") for name in names)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_02_the_rate_limiter_is_asked_once(endpoint):
    class Limiter(BaseRateLimiter):
        asked = 0

        def acquire(self, num_tokens=0):
            self.asked += 1

        async def async_acquire(self, num_tokens=0):
            self.asked += 1

    llm, _ = scripted()
    llm.rate_limiter = Limiter()
    await respond(llm, endpoint)
    assert llm.rate_limiter.asked == 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("reply", [REPLY, "  indented\n\n\tcode </s> ok \n", "👋🏽", "one"])
async def test_05_deltas_add_up_to_the_text(endpoint, reply):
    llm, _ = scripted(reply)
    responses = await respond(llm, endpoint)
    assert text_of(responses[-1]) == reply
    grown = ""
    for response in responses:
        grown = grown + response.delta if endpoint in STREAMS else text_of(response)
        assert text_of(response) == grown
        assert "\ufffd" not in grown


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_04_words_arrive_one_by_one(endpoint):
    llm, _ = scripted("one two three four")
    responses = await respond(llm, endpoint)
    assert [response.delta for response in responses if response.delta] == ["one", " two", " three", " four"]


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_06_no_chunk_cuts_a_character(endpoint):
    llm = AdaFuseLLM(max_new_tokens=64)
    beyond_any_vocabulary = Grammar.regex("((👩‍👩‍👧|👋🏽|日本語|Grüße) ){4}")
    responses = await respond(llm, endpoint, "Wave!", grammar=beyond_any_vocabulary)
    assert len(responses) > 2
    assert not any("\ufffd" in response.delta for response in responses)
    assert re.fullmatch("((👩‍👩‍👧|👋🏽|日本語|Grüße) ){4}", text_of(responses[-1]))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_06_no_answer_begins_with_a_tokenizers_own_blank(endpoint):
    responses = await respond(AdaFuseLLM(max_new_tokens=8), endpoint, "What is the capital of Italy?")
    assert text_of(responses[0])[0].isalpha()


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_07_an_answer_that_ends_at_once_is_one_empty_response(endpoint):
    llm, _ = scripted("")
    responses = await respond(llm, endpoint)
    assert [text_of(response) for response in responses] == [""]
    assert responses[0].raw["finish_reason"] == "stop"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_09_every_raw_is_json_and_the_last_holds_outcome_and_trace(endpoint):
    llm, _ = scripted("one two three", llm={"trace": "full"})
    responses = await respond(llm, endpoint, stop=[" three"])
    for response in responses:
        json.dumps(response.raw, allow_nan=False)
        response.model_dump_json()
    last = responses[-1].raw
    assert last["finish_reason"] == "stop"
    assert last["stop"] == " three"
    assert [played["text"] for played in last["rounds"]][:2] == ["one", " two"]
    for response in responses[:-1]:
        assert response.raw["round"] in last["rounds"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_09_without_trace_raw_has_no_rounds_but_listeners_receive_them(endpoint):
    words = []
    llm, _ = scripted("one two three", llm={"trace": False, "on_word": words.append})
    *earlier, last = await respond(llm, endpoint)
    assert [response.raw for response in earlier] == [{}] * len(earlier)
    assert set(last.raw) == {"usage", "usage_by_member", "finish_reason", "stop"}
    assert [word.text for word in words] == ["one", " two", " three"]
    assert [word.round for word in words] == [0, 1, 2]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_08_the_last_response_has_usage(endpoint):
    llm, _ = scripted("one two three")
    *earlier, last = await respond(llm, endpoint, "Which city is it?")
    # A scripted member's tokens are words: four words, and the markup of the turn.
    counts = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert last.raw["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 0}, "read_tokens": 8}
    assert not any("usage" in response.raw for response in earlier)


@pytest.mark.parametrize("endpoint", ["chat", "stream_chat", "achat", "astream_chat"])
async def test_10_messages_contain_only_the_text(endpoint):
    llm, _ = scripted()
    for response in await respond(llm, endpoint):
        assert response.message.additional_kwargs == {}
        assert response.additional_kwargs == {}
        assert [block.block_type for block in response.message.blocks] == ["text"]


def test_10_no_trace_leaks_into_the_next_prompt_of_a_chat_engine():
    llm, member = scripted("Fine.", llm={"is_chat_model": False})
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory(llm))
    engine.chat("How are you?")
    engine.chat("And now?")
    assert member.prompts[-1] == "user: How are you?\nassistant: Fine.\nuser: And now?\nassistant: "


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_37_messages_and_options_of_the_caller_are_not_changed(endpoint):
    llm, _ = scripted(llm={"system_prompt": "Be brief."})
    stop = ["never"]
    messages = [ChatMessage(role="system", content="A"), ChatMessage(content="B")]
    before = copy.deepcopy((messages, stop))
    await respond(llm, endpoint, "B" if "complete" in endpoint else messages, stop=stop)
    assert (messages, stop) == before


@pytest.mark.parametrize("endpoint", ["complete", "acomplete", "stream_complete", "astream_complete"])
class TestArgumentsOfCompletions:
    async def test_the_prompt_may_be_a_keyword(self, endpoint):
        llm, member = scripted("yes")
        result = getattr(llm, endpoint)(prompt="ask", formatted=True)
        result = await result if endpoint.startswith("a") else result
        if endpoint in STREAMS:
            _ = [chunk async for chunk in result] if endpoint.startswith("a") else list(result)
        assert member.prompts == ["ask"]

    async def test_formatted_may_be_positional(self, endpoint):
        llm, member = scripted("yes")
        result = getattr(llm, endpoint)("ask", True)
        result = await result if endpoint.startswith("a") else result
        if endpoint in STREAMS:
            _ = [chunk async for chunk in result] if endpoint.startswith("a") else list(result)
        assert member.prompts == ["ask"]

    async def test_a_missing_prompt_is_an_error(self, endpoint):
        llm, _ = scripted("yes")
        with pytest.raises(ValueError, match="No prompt"):
            await getattr(llm, endpoint)()

    async def test_a_prompt_given_twice_is_an_error(self, endpoint):
        llm, _ = scripted("yes")
        with pytest.raises(TypeError, match="multiple values"):
            await getattr(llm, endpoint)("ask", prompt="again")


def test_40_callback_manager_may_be_replaced_at_any_time():
    llm, _ = scripted()
    for _ in range(2):
        counter = TokenCountingHandler(tokenizer=str.split)
        llm.callback_manager = CallbackManager([counter])
        llm.complete("Which city?")
        assert len(counter.llm_token_counts) == 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_23_an_error_ends_the_event_and_reaches_the_consumer(endpoint):
    llm, _ = scripted("one two three four", fail_after=2)
    ended = []

    class Handler(TokenCountingHandler):
        def on_event_end(self, event_type, payload=None, event_id="", **_):
            if event_type == CBEventType.LLM:
                ended.append(payload)

    llm.callback_manager = CallbackManager([Handler(tokenizer=str.split)])
    with pytest.raises(RuntimeError, match="m0"):
        await respond(llm, endpoint)
    assert len(ended) == 1
    assert "exception" in ended[0]


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_23_words_before_an_error_are_delivered(endpoint):
    llm, _ = scripted("one two three four", fail_after=2)
    result = begin(llm, endpoint)
    stream = each(await result if endpoint.startswith("a") else result)
    assert [(await anext(stream)).delta for _ in range(2)] == ["one", " two"]
    with pytest.raises(RuntimeError, match="m0"):
        await anext(stream)


async def each(stream):
    """The chunks of a sync or async stream."""
    if hasattr(stream, "__aiter__"):
        async for chunk in stream:
            yield chunk
    else:
        for chunk in stream:
            yield chunk
