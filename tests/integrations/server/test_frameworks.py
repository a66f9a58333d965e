"""LangChain's `ChatOpenAI` and LlamaIndex's `OpenAILike` against a server on the small models."""

from __future__ import annotations

from typing import Literal

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from adafuse_core import Ensemble
from tests.integrations.server.running import ANSWER, QUESTION
from tests.integrations.stepped import LONG

WEATHER = "It is 16 degrees and cloudy."


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return WEATHER


class Place(BaseModel):
    """A city, from a choice that every answer can make."""

    city: Literal["Khartoum", "Lima"]
    is_capital: bool


def chat_openai(server, **options):
    """A `ChatOpenAI` on a client of its own: those that it makes itself are shared by the process, and never closed."""
    return ChatOpenAI(
        **{"base_url": f"{server.url}/v1", "api_key": "any", "model": "adafuse", "max_retries": 0, **options}
    )


@pytest.fixture
def chat(small):
    with httpx.Client(timeout=LONG) as client:
        yield chat_openai(small, http_client=client)


@pytest.fixture
def like(small):
    return OpenAILike(
        api_base=f"{small.url}/v1",
        api_key="any",
        model="adafuse",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0.0,
        timeout=LONG,
        max_retries=0,
        reuse_client=False,
    )


def test_chat_openai_gets_the_answer_and_its_usage(chat):
    answer = chat.invoke(QUESTION)
    assert answer.text == ANSWER
    assert answer.usage_metadata["output_tokens"] > 10
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "adafuse"


def test_chat_openai_streams(chat):
    chunks = list(chat.stream(QUESTION, stream_usage=True))
    assert "".join(chunk.text for chunk in chunks) == ANSWER
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 10


async def test_chat_openai_streams_on_an_event_loop(small):
    async with httpx.AsyncClient(timeout=LONG) as client:
        model = chat_openai(small, http_async_client=client)
        assert "".join([chunk.text async for chunk in model.astream(QUESTION)]) == ANSWER
        assert (await model.ainvoke(QUESTION)).text == ANSWER


def test_chat_openai_answers_a_batch(chat):
    assert [answer.text for answer in chat.batch([QUESTION] * 3)] == [ANSWER] * 3


def test_chat_openai_calls_tools_in_an_agent(chat):
    state = create_agent(chat, [get_weather]).invoke({"messages": [HumanMessage("What is the weather in Paris?")]})
    call = next(message.tool_calls[0] for message in state["messages"] if getattr(message, "tool_calls", None))
    assert call["name"] == "get_weather"
    assert call["args"] == {"city": "Paris"}
    assert "cloudy" in state["messages"][-1].text


def test_chat_openai_returns_objects(chat):
    for method in ("json_schema", "function_calling"):
        place = chat.with_structured_output(Place, method=method).invoke(QUESTION)
        assert isinstance(place, Place)


def test_chat_openai_reaches_one_member(chat):
    alone = chat.model_copy(update={"model_name": "adafuse:birch"})
    assert alone.invoke(QUESTION).text not in ("", ANSWER)


def test_langchains_completion_class_continues_texts(small):
    with httpx.Client(timeout=LONG) as client:
        options = {"base_url": f"{small.url}/v1", "api_key": "any", "model": "adafuse", "http_client": client}
        model = OpenAI(max_tokens=6, max_retries=0, temperature=0, **options)
        expected = Ensemble().generate("The Jungle Book was written by", max_new_tokens=6).text
        assert model.invoke("The Jungle Book was written by") == expected
        assert "".join(model.stream("The Jungle Book was written by")) == expected


def test_openai_like_gets_the_answer(like):
    assert like.chat([ChatMessage(role="user", content=QUESTION)]).message.content == ANSWER
    deltas = [chunk.delta for chunk in like.stream_chat([ChatMessage(role="user", content=QUESTION)])]
    assert "".join(delta or "" for delta in deltas) == ANSWER


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
async def test_openai_like_works_in_an_agent(like):
    agent = FunctionAgent(tools=[get_weather], llm=like)
    answer = await agent.run("What is the weather in Paris?")
    assert "cloudy" in str(answer)
    assert [(call.tool_name, call.tool_kwargs) for call in answer.tool_calls] == [("get_weather", {"city": "Paris"})]
