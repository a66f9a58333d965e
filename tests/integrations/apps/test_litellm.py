"""LiteLLM against a server on the small models."""

from __future__ import annotations

import json
import os

import pytest

from tests.integrations.server.running import ANSWER, MESSAGES, QUESTION
from tests.integrations.stepped import LONG

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no network
litellm = pytest.importorskip("litellm", reason="litellm is not installed: make test-apps")

pytestmark = pytest.mark.filterwarnings("default")  # of packages that are not ours

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Khartoum", "Lima"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
def options(small):
    """Arguments of all calls."""
    return {
        "model": "openai/adafuse",
        "api_base": f"{small.url}/v1",
        "api_key": "any",
        "timeout": LONG,
        "num_retries": 0,
    }


def test_completion(options):
    answer = litellm.completion(messages=MESSAGES, **options)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 10


def test_stream(options):
    chunks = list(litellm.completion(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-1].usage.completion_tokens > 10


async def test_async_completion_and_stream(options):
    answer = await litellm.acompletion(messages=MESSAGES, **options)
    assert answer.choices[0].message.content == ANSWER
    stream = await litellm.acompletion(messages=MESSAGES, stream=True, **options)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_tools(options, stream):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = litellm.completion(messages=messages, tools=[WEATHER], stream=stream, **options)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "It is 16 degrees and cloudy."}
    talk = [*messages, answer.choices[0].message.model_dump(exclude_none=True), result]
    assert "cloudy" in litellm.completion(messages=talk, tools=[WEATHER], **options).choices[0].message.content


def test_objects(options):
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    answer = litellm.completion(messages=MESSAGES, response_format=wanted, **options)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Khartoum", "Lima")


def test_one_member(options):
    alone = litellm.completion(messages=MESSAGES, **{**options, "model": "openai/adafuse:birch"})
    assert alone.choices[0].message.content not in ("", ANSWER)


def test_a_prompt_that_is_too_long_is_known_as_such(options):
    with pytest.raises(litellm.ContextWindowExceededError, match="context window is 2048"):
        litellm.completion(messages=[{"role": "user", "content": QUESTION * 1000}], **options)


def test_an_unknown_field_is_a_bad_request(options):
    with pytest.raises(litellm.BadRequestError, match="top_k"):
        litellm.completion(messages=MESSAGES, extra_body={"top_k": 5}, **options)
