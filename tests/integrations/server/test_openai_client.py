"""The official client of OpenAI against a server on the small models."""

from __future__ import annotations

import json

import openai
import pytest

from adafuse_core import Ensemble
from tests.integrations.server.running import ANSWER, MESSAGES, QUESTION, serving

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["city", "year"],
    "additionalProperties": False,
}


def ask(client, **options):
    return client.chat.completions.create(**{"model": "adafuse", "messages": MESSAGES, **options})


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_the_models_are_the_ensembles_and_each_member_alone(small):
    client = small.client()
    assert [model.id for model in client.models.list()] == [
        *("adafuse", "adafuse:aspen", "adafuse:birch"),
        *("solo", "solo:birch"),
    ]
    assert client.models.retrieve("adafuse:birch").owned_by == "adafuse"
    with pytest.raises(openai.NotFoundError, match="oak"):
        client.models.retrieve("adafuse:oak")


def test_an_answer_is_that_of_the_library(small):
    answer = ask(small.client())
    alone = Ensemble().generate(MESSAGES)
    assert answer.choices[0].message.content == alone.text == ANSWER
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "adafuse", "chat.completion")
    _, prompt, completion = alone.usage.first()
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, completion)
    assert answer.usage.total_tokens == prompt + completion


def test_a_repeated_prompt_is_read_from_the_cache(small):
    ask(small.client())
    assert ask(small.client()).usage.prompt_tokens_details.cached_tokens > 10


def test_one_member_alone_answers_as_its_own_ensemble(small):
    for member in ("aspen", "birch"):
        alone = Ensemble(members=[f"small:{member}"], strategy="single").generate(MESSAGES).text
        assert ask(small.client(), model=f"adafuse:{member}").choices[0].message.content == alone


def test_members_alone_share_the_loaded_models(small):
    pair, alone = (small.answering.models.find(name).ensemble for name in ("adafuse", "adafuse:birch"))
    assert [member.backend for member in alone.members] == [member.backend for member in pair.members]


def test_a_stream_has_the_same_text_and_counts_tokens_on_request(small):
    client = small.client()
    chunks = list(ask(client, stream=True))
    assert text_of(chunks) == ANSWER
    assert len(chunks) > 4
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert not any(chunk.usage for chunk in chunks)
    *chunks, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert text_of(chunks) == ANSWER
    assert last.choices == []
    assert last.usage.completion_tokens == ask(client).usage.completion_tokens


async def test_the_async_client_gets_the_same_answers(small):
    async with small.async_client() as client:
        assert (await ask(client)).choices[0].message.content == ANSWER
        assert text_of([chunk async for chunk in await ask(client, stream=True)]) == ANSWER


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_is_limited(small, name):
    answer = ask(small.client(), **{name: 4})
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", [" Kipling", [" Kipling", "Sudan"]])
def test_an_answer_ends_at_a_stop_string(small, stop):
    client = small.client()
    assert ask(client, stop=stop).choices[0].message.content == "The Jungle Book was written by Rudyard"
    assert text_of(ask(client, stop=stop, stream=True)) == "The Jungle Book was written by Rudyard"


def test_several_answers_are_sampled_with_seeds_in_a_row(small):
    client = small.client()
    options = {"temperature": 3.0, "max_tokens": 12}
    several = [choice.message.content for choice in ask(client, n=3, seed=5, **options).choices]
    assert several == [ask(client, seed=5 + each, **options).choices[0].message.content for each in range(3)]
    chunks = list(ask(client, n=3, seed=5, stream=True, **options))
    streamed = [text_of(chunk for chunk in chunks if chunk.choices[0].index == index) for index in range(3)]
    assert streamed == several


def test_several_answers_are_sampled_apart_if_the_ensemble_has_the_seed(small):
    options = {"temperature": 3.0, "max_tokens": 12}
    expected = [ask(small.client(), seed=5 + each, **options).choices[0].message.content for each in range(3)]
    seeded = Ensemble(generation={"seed": 5})
    with serving(ensembles={"adafuse": seeded}) as server:
        several = [choice.message.content for choice in ask(server.client(), n=3, **options).choices]
    assert several == expected
    assert len(set(several)) > 1


def test_usage_counts_the_prompt_once_and_all_answers(small):
    client = small.client()
    one, three = (ask(client, n=count).usage for count in (1, 3))
    assert three.prompt_tokens == one.prompt_tokens
    assert three.completion_tokens == 3 * one.completion_tokens


def test_texts_are_continued(small):
    client, prompt = small.client(), "The Jungle Book was written by"
    expected = Ensemble().generate(prompt, max_new_tokens=6).text
    whole = client.completions.create(model="adafuse", prompt=prompt, max_tokens=6)
    assert whole.choices[0].text == expected
    chunks = list(client.completions.create(model="adafuse", prompt=prompt, max_tokens=6, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    both = client.completions.create(model="adafuse", prompt=[prompt, "Hello"], max_tokens=6, n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[:2]] == [expected] * 2
    assert both.usage.prompt_tokens > whole.usage.prompt_tokens
    assert both.usage.prompt_tokens < 2 * whole.usage.prompt_tokens


def test_forced_calls_match_the_schema_of_the_tool(small):
    client = small.client()
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    answer = ask(client, **options).choices[0]
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather"
    assert list(json.loads(call.function.arguments)) == ["city"]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    with client.chat.completions.stream(model="adafuse", messages=MESSAGES, **options) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.message.tool_calls[0].function.name == "get_weather"


def test_results_of_tools_are_read(small):
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Snow."},
    ]
    answer = ask(small.client(), messages=history, tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].message.content


def test_json_follows_its_schema(small):
    client = small.client()
    named = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = ask(client, response_format=named, max_tokens=60).choices[0]
    value = json.loads(answer.message.content)
    assert isinstance(value["year"], int)
    assert isinstance(value["city"], str)
    streamed = text_of(ask(client, response_format=named, max_tokens=60, stream=True))
    assert streamed == answer.message.content
    free = ask(client, response_format={"type": "json_object"}, max_tokens=20).choices[0]
    assert isinstance(json.loads(free.message.content), dict)


def test_json_is_complete_even_if_the_budget_is_small(small):
    named = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    answer = ask(small.client(), response_format=named, max_tokens=24, extra_body={"adafuse": {}})
    assert set(json.loads(answer.choices[0].message.content)) == {"city", "year"}


def test_rounds_are_reported_on_request(small):
    client, extra = small.client(), {"adafuse": {"rounds": True}}
    rounds = [played.to_dict() for played in Ensemble().generate(MESSAGES).rounds]
    whole = ask(client, extra_body=extra).choices[0].adafuse
    assert [each["text"] for each in whole["rounds"]] == [each["text"] for each in rounds]
    assert [each.keys() for each in whole["rounds"]] == [each.keys() for each in rounds]
    assert [each["proposers"] for each in whole["rounds"]] == [each["proposers"] for each in rounds]
    assert set(whole["usage"]["prompt_tokens"]) == {"aspen", "birch"}
    chunks = list(ask(client, extra_body=extra, stream=True))
    streamed = [chunk.adafuse["round"] for chunk in chunks[:-1]]
    assert [(each["text"], each["proposers"]) for each in streamed] == [
        (each["text"], each["proposers"]) for each in rounds
    ]
    assert chunks[-1].adafuse["usage"]["rounds"] == len(rounds)
    plain = ask(client).choices[0]
    assert not hasattr(plain, "adafuse")


def test_rounds_of_continued_texts_are_reported_on_request(small):
    client, extra = small.client(), {"adafuse": {"rounds": True}}
    options = {"model": "adafuse", "prompt": "Hello", "max_tokens": 8, "extra_body": extra}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(stream=True, **options))
    streamed = [chunk.adafuse["round"]["text"] for chunk in chunks if "round" in chunk.adafuse]
    assert streamed == [each["text"] for each in whole.choices[0].adafuse["rounds"]]


def test_the_ensembles_are_described(small):
    pair, solo = small.get("/v1/adafuse/ensembles").json()["data"]
    assert [member["name"] for member in pair["members"]] == ["aspen", "birch"]
    assert pair["members"][0]["alone"] == "adafuse:aspen"
    assert (pair["strategy"], pair["options"]["tau"], solo["options"]["branches"]) == ("beam", 0.7, 1)
    assert pair["generation"]["max_new_tokens"] == 256


def test_the_counters_count_what_was_answered(small):
    client = small.client()
    answer = ask(client)
    text = small.get("/metrics").text
    for name in (
        "requests_running",
        "requests_waiting",
        "words_total",
        "first_word_seconds",
        "words_per_second",
        "kv_tokens",
    ):
        assert f"adafuse_{name}" in text
    words = small.metric("adafuse_words_total", model="adafuse")
    proposed = small.metric("adafuse_rounds_proposed_total", model="adafuse", member="birch")
    prompts = small.metric("adafuse_prompt_tokens_total", model="adafuse", member="aspen")
    cached = small.metric("adafuse_cached_prompt_tokens_total", model="adafuse", member="aspen")
    ask(client)
    assert small.metric("adafuse_words_total", model="adafuse") == words + len(ANSWER.split())
    assert small.metric("adafuse_rounds_proposed_total", model="adafuse", member="birch") > proposed
    assert (
        small.metric("adafuse_prompt_tokens_total", model="adafuse", member="aspen")
        == prompts + answer.usage.prompt_tokens
    )
    assert small.metric("adafuse_cached_prompt_tokens_total", model="adafuse", member="aspen") > cached
    assert small.metric("adafuse_kv_tokens", model="adafuse", member="aspen", of="cached") > 0
    assert small.metric("adafuse_requests_total", path="/v1/chat/completions", status="200") > 1


def test_the_question_may_have_parts_and_a_developer(small):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert ask(small.client(), messages=parts).choices[0].message.content == ANSWER
    told = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    assert ask(small.client(), messages=told).choices[0].message.content
