"""`ChatAdaFuse` as LangChain applications use it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import get_type_hints

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core import exceptions as langchain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from pydantic import BaseModel, Field, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from typing_extensions import TypedDict

from adafuse_core import ConfigError
from adafuse_core import errors as core
from adafuse_core.calls import ToolCall
from adafuse_core.chat.grammar import Grammar
from adafuse_core.chat.messages import Message
from adafuse_core.ensemble import Ensemble
from adafuse_core.members import registry
from adafuse_core.members.scripted import ScriptedMember
from adafuse_integrations.langchain import ChatAdaFuse
from tests.integrations.langchain import conftest
from tests.integrations.langchain.conftest import (
    QUESTION,
    STOPPED,
    TEXT,
    calculator,
    collected,
    crew,
    get_weather,
)
from tests.integrations.stepped import stopped, until

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # events of version 3

ROOT = Path(__file__).parents[3]
scripted = partial(conftest.scripted, ChatAdaFuse)


class City(BaseModel):
    """A city and what is known of it."""

    name: str = Field(description="The city's name.")
    people: int = Field(default=0, description="How many live there.")


class CityOf(BaseModel):
    """A city, all of which has to be told."""

    name: str
    people: int


PARIS = '{"name": "Paris", "people": 2}'
CALL_WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def echo(messages):
    """A scripted reply that depends only on the last message."""
    return " ".join(f"{messages[-1].content}-{number}" for number in range(6))


def weather_report(messages):
    """A scripted reply that calls the weather tool, and then answers."""
    last = messages[-1]
    return f"It is {last.content}." if last.role == "tool" else CALL_WEATHER


class Heard(BaseCallbackHandler):
    """A callback handler that records its calls."""

    def __init__(self):
        self.tokens, self.ends, self.errors = {}, [], []

    def on_chat_model_start(self, serialized, messages, *, run_id, **_):
        self.tokens[run_id] = [messages[0][-1].content, ""]

    def on_llm_new_token(self, token, *, run_id, **_):
        self.tokens[run_id][1] += token

    def on_llm_end(self, response, **_):
        self.ends.append(response)

    def on_llm_error(self, error, **_):
        self.errors.append(error)

    def text_by_prompt(self):
        return dict(self.tokens.values())


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tua": 0.5}, "tua"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "both max_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"temperature": 1.0, "strategy": "single"}, "temperature"),
        ({"members": ["a", "b"], "model": "a+c"}, "no member 'c'"),
        ({"streaming": "perhaps"}, "streaming"),
        ({"system": "be kind"}, "system"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(arguments, problem):
    with pytest.raises(ValidationError, match=problem):
        ChatAdaFuse(**arguments)


# --- text ---


async def test_all_ways_give_the_same_text_to_the_byte():
    llm, _ = scripted()
    assert llm.invoke("go").content == TEXT
    assert text_of(llm.stream("go")) == TEXT
    assert (await llm.ainvoke("go")).content == TEXT
    assert text_of(await collected(llm.astream("go"))) == TEXT
    for answers in (llm.batch(["go"]), await llm.abatch(["go"])):
        assert [answer.content for answer in answers] == [TEXT]
    assert llm.stream_events("go", version="v3").output.text == TEXT
    assert (await (await llm.astream_events("go", version="v3")).output).text == TEXT


async def test_the_small_models_answer_alike_on_every_path():
    llm = ChatAdaFuse()
    answer = llm.invoke(QUESTION)
    assert answer.content == "The capital of France is Paris."
    assert text_of(llm.stream(QUESTION)) == answer.content
    assert (await llm.ainvoke(QUESTION)).content == answer.content
    assert text_of(await collected(llm.astream(QUESTION))) == answer.content
    assert answer.content == Ensemble().generate([{"role": "user", "content": QUESTION}]).text


def test_messages_reach_the_members_one_by_one():
    llm, member = scripted()
    llm.invoke([("system", "be kind"), ("human", "hi"), ("ai", "hello"), HumanMessage("go", name="ann")])
    assert member.prompts[-1] == (
        Message(role="system", content="be kind"),
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
        Message(role="user", content="go", name="ann"),
    )


def test_it_composes_with_prompts_and_parsers():
    llm, _ = scripted(echo)
    chain = ChatPromptTemplate.from_messages([("system", "s"), ("user", "say {word}")]) | llm | StrOutputParser()
    assert chain.invoke({"word": "hi"}).startswith("say hi-0")
    assert "".join(chain.stream({"word": "hi"})) == chain.invoke({"word": "hi"})


@pytest.mark.parametrize("messages", [[], [HumanMessage("")], [HumanMessage(" "), AIMessage("")]])
def test_a_conversation_without_a_question_is_refused(messages):
    with pytest.raises(core.PromptError):
        scripted()[0].invoke(messages)


def test_images_are_refused_clearly():
    llm, member = scripted()
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
    ]
    with pytest.raises(ValueError, match=r"'image_url'.*expected text"):
        llm.invoke([HumanMessage(content)])
    assert member.prompts == []


def test_standard_content_blocks_are_an_option():
    llm, _ = scripted("<think>\nhm\n</think>\n\none two", output_version="v1")
    for message in (llm.invoke("go"), reduce(add, llm.stream("go"))):
        assert [block["type"] for block in message.content] == ["reasoning", "text"]
        assert message.text == "one two"
    two_calls = f"one two\n{CALL_WEATHER}\n{CALL_WEATHER.replace('Paris', 'Rome')}"
    calling = scripted(two_calls, output_version="v1")[0].bind_tools([get_weather])
    for message in (calling.invoke("go"), reduce(add, calling.stream("go"))):
        assert [block["type"] for block in message.content] == ["text", "tool_call", "tool_call"]
        assert message.text == "one two"
        assert [call["args"]["city"] for call in message.tool_calls] == ["Paris", "Rome"]


def test_reasoning_is_no_part_of_the_text():
    llm, _ = scripted("<think>\nhm, one\n</think>\n\none two")
    for message in (llm.invoke("go"), reduce(add, llm.stream("go"))):
        assert message.content == "one two"
        assert message.additional_kwargs["reasoning_content"] == "hm, one"
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
    assert [block["type"] for block in llm.stream_events("go", version="v3").output.content_blocks] == [
        "reasoning",
        "text",
    ]


# --- stop and other options of a call ---


async def test_stop_strings_work_across_words_on_every_path_and_are_not_in_the_text():
    llm, _ = scripted()
    stop = ["two. Obs"]
    chunks = list(llm.stream("go", stop=stop))
    assert text_of(chunks) == STOPPED
    assert not any("t" in chunk.text for chunk in chunks)
    assert llm.invoke("go", stop=stop).content == STOPPED
    assert (await llm.ainvoke("go", stop=stop)).content == STOPPED
    assert text_of(await collected(llm.astream("go", stop=stop))) == STOPPED
    assert llm.bind(stop=stop).invoke("go").content == STOPPED


def test_stop_of_a_call_replaces_the_constructors():
    llm, _ = scripted(stop=["three"])
    assert llm.invoke("go").content == "one two. Observation: "
    assert llm.invoke("go", stop=["two"]).content == STOPPED
    assert llm.invoke("go", stop=[]).content == TEXT


@pytest.mark.parametrize("options", [{"max_tokens": 2}, {"max_new_tokens": 2}])
async def test_call_options_are_honoured_on_every_path(options):
    llm, _ = scripted()
    assert llm.invoke("go", **options).content == "one two."
    assert text_of(llm.stream("go", **options)) == "one two."
    assert (await llm.ainvoke("go", **options)).content == "one two."
    assert text_of(await collected(llm.astream("go", **options))) == "one two."
    assert llm.bind(**options).invoke("go").content == "one two."


def test_temperature_and_seed_of_a_call_are_honoured():
    members = [ScriptedMember("a", "left"), ScriptedMember("b", "right")]
    llm = ChatAdaFuse.from_ensemble(Ensemble(members=members))
    drawn = [llm.invoke("go", temperature=50.0, seed=seed).content for seed in range(12)]
    assert set(drawn) == {"left", "right"}
    assert drawn == [llm.invoke("go", temperature=50.0, seed=seed).content for seed in range(12)]


@pytest.mark.parametrize("options", [{"max_token": 2}, {"functions": []}, {"cancelled": None}, {"tau": 0.5}, {"n": 2}])
async def test_unknown_call_options_are_refused_on_every_path(options):
    llm, member = scripted()
    for call in (llm.invoke, lambda *a, **k: list(llm.stream(*a, **k)), lambda *a, **k: llm.batch([*a], **k)):
        with pytest.raises(core.ConfigError, match=f"unknown generation option '{next(iter(options))}'"):
            call("go", **options)
    with pytest.raises(core.ConfigError, match="unknown"):
        await llm.ainvoke("go", **options)
    with pytest.raises(core.ConfigError, match="unknown"):
        await collected(llm.astream("go", **options))
    assert member.prompts == []


# --- metadata of answers ---


def test_usage_is_exact_and_reported_once_for_the_first_member():
    llm, member = scripted("a b c")
    answer, chunks = llm.invoke("go on"), list(llm.stream("go on"))
    expected = {
        "input_tokens": member.count_tokens(member.prompts[0]),
        "output_tokens": 3,
        "total_tokens": 6,
        "input_token_details": {"cache_read": 0},
    }
    assert answer.usage_metadata == reduce(add, chunks).usage_metadata == expected
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [expected]
    counted = answer.response_metadata["adafuse"]
    assert counted["counted_by"] == "left"
    assert counted["usage"] == {
        "prompt_tokens": {"left": 3, "right": 3},
        "completion_tokens": {"left": 3, "right": 3},
        "cached_tokens": {"left": 0, "right": 0},
        "read_tokens": {"left": 6, "right": 6},
    }


def test_usage_is_added_up_by_handlers():
    llm, heard = scripted("a b c")[0], UsageMetadataCallbackHandler()
    llm.invoke("go", {"callbacks": [heard]})
    list(llm.stream("go", {"callbacks": [heard]}))
    assert heard.usage_metadata["left+right"]["output_tokens"] == 6


@pytest.mark.parametrize(
    ("options", "reason", "stop"),
    [
        ({}, "stop", None),
        ({"stop": ["get"]}, "stop", "get"),
        ({"max_tokens": 1}, "length", None),
        ({"tools": [get_weather]}, "tool_calls", None),
    ],
)
async def test_every_path_reports_the_finish_reason(options, reason, stop):
    llm, _ = scripted(CALL_WEATHER)
    answers = [
        llm.invoke("go", **options),
        await llm.ainvoke("go", **options),
        reduce(add, llm.stream("go", **options)),
    ]
    answers.append(reduce(add, await collected(llm.astream("go", **options))))
    answers.append(llm.stream_events("go", version="v3", **options).output)
    for answer in answers:
        metadata = answer.response_metadata
        assert (metadata["finish_reason"], metadata["stop"]) == (reason, stop)
        assert (metadata["model_name"], metadata["model_provider"]) == ("left+right", "adafuse")


def test_chunks_carry_their_rounds_and_add_up_to_the_trace():
    members = [ScriptedMember("a", "left side", margin=0.5), ScriptedMember("b", "right side", margin=1.0)]
    llm = ChatAdaFuse.from_ensemble(Ensemble(members=members, strategy="adafuse", max_words=1), trace="full")
    chunks = list(llm.stream("go"))
    (played,) = chunks[0].response_metadata["adafuse"]["rounds"]
    assert chunks[0].text == played["text"] == "left"
    assert played["proposers"] == ["a"]
    assert played["margins"] == {"a": [0.5], "b": [1.0]}
    rounds = reduce(add, chunks).response_metadata["adafuse"]["rounds"]
    assert "".join(played["text"] for played in rounds) == "left side"
    answer = llm.invoke("go")
    assert answer.response_metadata["adafuse"]["rounds"] == rounds
    assert json.loads(json.dumps(answer.response_metadata)) == answer.response_metadata
    assert chunks[-1].chunk_position == "last"


# --- callbacks ---


async def test_callbacks_receive_each_token_once_while_streaming():
    llm = scripted(streaming=True)[0]
    for mode in ("invoke", "stream", "ainvoke", "astream"):
        heard = Heard()
        config = {"callbacks": [heard]}
        if mode == "invoke":
            llm.invoke("go", config)
        elif mode == "stream":
            list(llm.stream("go", config))
        elif mode == "ainvoke":
            await llm.ainvoke("go", config)
        else:
            await collected(llm.astream("go", config))
        assert heard.text_by_prompt() == {"go": TEXT}, mode
        (response,) = heard.ends
        assert response.generations[0][0].text == TEXT


def test_streaming_follows_fields_and_calls():
    def told(llm, **options):
        heard = Heard()
        llm.invoke("go", {"callbacks": [heard]}, **options)
        return heard.text_by_prompt()["go"]

    llm, _ = scripted()
    assert told(llm) == ""
    assert told(llm, stream=True) == TEXT
    assert told(scripted(streaming=True)[0], stream=False) == ""
    assert len(list(scripted(disable_streaming=True)[0].stream("go"))) == 1
    careful, _ = scripted(CALL_WEATHER, disable_streaming="tool_calling")
    assert len(list(careful.bind_tools([get_weather]).stream("go"))) == 1
    assert len(list(careful.stream("go"))) > 1


async def test_tokens_of_a_batch_go_to_their_own_runs():
    llm, _ = scripted(echo, streaming=True)
    prompts = ["a", "b", "c"]
    for run in (llm.batch, llm.abatch):
        heard = Heard()
        answers = run(prompts, {"callbacks": [heard]})
        answers = await answers if asyncio.iscoroutine(answers) else answers
        assert [answer.content for answer in answers] == [echo([HumanMessage(prompt)]) for prompt in prompts]
        assert heard.text_by_prompt() == {prompt: echo([HumanMessage(prompt)]) for prompt in prompts}


async def test_async_handlers_receive_tokens():
    class Async(AsyncCallbackHandler):
        text = ""

        async def on_llm_new_token(self, token, **_):
            self.text += token

    llm, handler = scripted()[0], Async()
    await collected(llm.astream("go", {"callbacks": [handler]}))
    assert handler.text == TEXT


async def test_a_bad_prompt_of_a_batch_fails_alone():
    llm, _ = scripted("fine", context_window=8)
    prompts = ["good", "far " * 20, "also good"]
    for answers in (llm.batch(prompts, return_exceptions=True), await llm.abatch(prompts, return_exceptions=True)):
        assert (answers[0].content, answers[2].content) == ("fine", "fine")
        assert isinstance(answers[1], core.ContextOverflowError)


# --- cache ---


def test_the_cache_key_contains_call_options():
    llm, member = scripted(cache=InMemoryCache())
    asked = [
        {},
        {"max_tokens": 1},
        {"stop": ["two"]},
        {"tools": [get_weather]},
        {"tools": [calculator]},
        {"model": "left"},
        {"response_format": {"type": "text"}},
    ]
    answers = [llm.invoke("go", **options).content for options in asked]
    assert len(member.prompts) == len(asked)
    assert answers == [llm.invoke("go", **options).content for options in asked]
    assert len(member.prompts) == len(asked)
    assert answers[:3] == [TEXT, "one", STOPPED]


def test_the_cache_key_contains_constructor_options():
    cache = InMemoryCache()
    ensemble = Ensemble(members=[ScriptedMember("a", TEXT)])
    llm = ChatAdaFuse.from_ensemble(ensemble, cache=cache)
    assert llm.invoke("go").content == TEXT
    assert ChatAdaFuse.from_ensemble(ensemble, cache=cache, stop=["two"]).invoke("go").content == STOPPED
    assert llm.model_copy(update={"max_new_tokens": 1}).invoke("go").content == "one"
    other = Ensemble(members=[ScriptedMember("a", "another")])
    assert ChatAdaFuse.from_ensemble(other, cache=cache).invoke("go").content == "another"


@pytest.mark.parametrize(
    "change",
    [
        {"members": ["a", {"model": "b", "weight": 2.0}]},
        {"members": ["a", {"model": "b", "revision": "main"}]},
        {"members": ["b", "a"]},
        {"model": "a"},
        {"tau": 0.1},
        {"branches": 1},
        {"strategy": "single"},
        {"temperature": 0.5},
        {"seed": 1},
        {"max_tokens": 5},
        {"stop": ["x"]},
        {"api_key": "hf_other"},
    ],
)
def test_identifying_params_differ_if_answers_may_differ(change):
    base = {"members": ["a", "b"]}
    assert ChatAdaFuse(**base).asdict() == ChatAdaFuse(**base).asdict()
    assert ChatAdaFuse(**base)._get_llm_string() != ChatAdaFuse(**{**base, **change})._get_llm_string()


# --- cancelling ---


def endless(*, steps):
    """A chat model that writes one word per permitted step and then waits, and its first member."""
    return conftest.endless(ChatAdaFuse, steps=steps)


def test_closing_a_stream_ends_the_generation():
    llm, member = endless(steps=3)
    stream = llm.stream("go")
    next(stream)
    assert [len(other.running) for other in crew(llm)] == [1, 1]
    drafted = member.drafts
    stream.close()
    assert not any(other.running for other in crew(llm))
    assert member.drafts == drafted


def test_closing_a_stream_frees_the_memory_of_models():
    llm = ChatAdaFuse()
    stream = llm.stream(QUESTION)
    next(stream)
    assert conftest.held(llm) > 0
    stream.close()
    assert conftest.held(llm) == 0


async def test_leaving_an_async_stream_ends_the_generation():
    llm, member = endless(steps=1)
    async for _ in llm.astream("go"):
        break
    await stopped(*crew(llm))
    assert member.drafts <= 2


async def test_cancelling_ainvoke_ends_the_generation():
    llm, member = endless(steps=3)
    task = asyncio.create_task(llm.ainvoke("go"))
    await until(lambda: member.drafts == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopped(*crew(llm))
    assert member.drafts == 3


async def test_the_default_executor_of_the_loop_is_not_used():
    class Forbidden(ThreadPoolExecutor):
        def submit(self, *_, **__):
            raise AssertionError("the default executor was used")

    asyncio.get_running_loop().set_default_executor(Forbidden(1))
    llm, _ = scripted(delay=0.001)
    answers = await asyncio.gather(*(llm.ainvoke("go") for _ in range(8)))
    assert {answer.content for answer in answers} == {TEXT}
    assert text_of(await collected(llm.astream("go"))) == TEXT


# --- tools ---


@pytest.mark.parametrize("choice", ["any", "required", True, "calculator", {"type": "any"}, {"name": "calculator"}])
@pytest.mark.parametrize("names", [1, 2])
def test_a_forced_call_is_valid_whatever_is_asked(choice, names):
    llm = ChatAdaFuse(max_tokens=40, complete_calls=True)
    message = llm.bind_tools([calculator, get_weather][:names], tool_choice=choice).invoke("Hello!")
    (call, *_) = message.tool_calls
    assert message.invalid_tool_calls == []
    assert call["name"] == "calculator" or choice in ("any", "required", True, {"type": "any"})
    assert [type(value) for value in call["args"].values()] == [str]


@pytest.mark.parametrize("names", [("bytes", "pieces"), ("pieces", "crossing")])
def test_random_models_whose_tokenizers_disagree_call_tools_and_obey_schemas(tiny_models, names):
    llm = ChatAdaFuse(members=[str(tiny_models[name]) for name in names], max_tokens=70)
    small = {"type": "integer", "minimum": 0, "maximum": 99}  # random models may never end a number
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": small}, "required": ["a"]}}
    message = llm.bind_tools([tool], tool_choice="any", parallel_tool_calls=False).invoke("Hello!")
    assert [(call["name"], type(call["args"]["a"])) for call in message.tool_calls] == [("f", int)]
    assert isinstance(llm.with_structured_output(City).invoke("Hello!"), City)


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        (None, {}),
        (False, {}),
        ("auto", {"tool_choice": "auto"}),
        ("none", {"tool_choice": "none"}),
        (True, {"tool_choice": "any"}),
        ("any", {"tool_choice": "any"}),
        ("required", {"tool_choice": "any"}),
        ("get_weather", {"tool_choice": "get_weather"}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"tool_choice": "get_weather"}),
        ({"type": "tool", "name": "get_weather"}, {"tool_choice": "get_weather"}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
    ],
)
def test_every_form_of_a_choice_is_understood(choice, asked):
    bound = ChatAdaFuse().bind_tools([get_weather], tool_choice=choice)
    assert {name: value for name, value in bound.kwargs.items() if name != "tools"} == asked


@pytest.mark.parametrize("choice", ["get_time", {"type": "function", "function": {"name": "get_time"}}])
def test_a_choice_of_an_unknown_tool_is_refused(choice):
    with pytest.raises(core.ConfigError, match=r"no tool of that name(?s:.*)get_weather"):
        ChatAdaFuse().bind_tools([get_weather], tool_choice=choice)
    with pytest.raises(core.ConfigError, match="no tool of that name"):
        scripted()[0].invoke("go", tools=[get_weather], tool_choice=choice)


@pytest.mark.parametrize("choice", [3, ["any"], {"mode": "any"}, {}])
def test_a_choice_of_another_kind_is_refused(choice):
    with pytest.raises(core.ConfigError, match="tool_choice"):
        ChatAdaFuse().bind_tools([get_weather], tool_choice=choice)


def test_an_empty_list_of_tools_means_no_tools():
    llm, member = scripted()
    for choice in (None, "auto", "none"):
        assert llm.bind_tools([], tool_choice=choice).invoke("go").content == TEXT
    for choice in ("any", True, "get_weather"):
        with pytest.raises(core.ConfigError, match="tool"):
            llm.bind_tools([], tool_choice=choice)
    assert len(member.prompts) == 3


def plain_function(city: str) -> str:
    """Get the weather in a city."""
    return city


class TypedWeather(TypedDict):
    """Get the weather in a city."""

    city: str


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (get_weather, "get_weather"),
        (plain_function, "plain_function"),
        (City, "City"),
        (TypedWeather, "TypedWeather"),
        ({"name": "f", "input_schema": {"type": "object", "properties": {}}}, "f"),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"title": "f", "description": "d", "type": "object", "properties": {"a": {"type": "string"}}}, "f"),
    ],
)
def test_tools_come_in_every_form(given, name):
    (bound,) = ChatAdaFuse().bind_tools([given]).kwargs["tools"]
    assert bound["type"] == "function"
    assert bound["function"]["name"] == name
    assert bound["function"]["parameters"]["type"] == "object"


def test_tools_that_a_provider_would_run_are_refused():
    with pytest.raises(core.ConfigError, match="web_search"):
        ChatAdaFuse().bind_tools([{"type": "web_search"}])


@pytest.mark.parametrize("form", [City, ChatAdaFuse().bind_tools([City]).kwargs["tools"][0]], ids=["class", "OpenAI's"])
def test_strict_tools_require_all_their_properties(form):
    (loose,), (strict,) = (ChatAdaFuse().bind_tools([form], strict=strict).kwargs["tools"] for strict in (None, True))
    assert loose["function"]["parameters"]["required"] == ["name"]
    assert strict["function"]["parameters"]["required"] == ["name", "people"]
    assert strict["function"]["parameters"]["additionalProperties"] is False


async def test_calls_stream_name_and_id_first_then_arguments():
    llm = scripted(f"Let me see.\n{CALL_WEATHER}")[0].bind_tools([get_weather])
    for chunks in (list(llm.stream("go")), await collected(llm.astream("go"))):
        pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
        assert pieces[0]["name"] == "get_weather"
        assert pieces[0]["id"]
        assert [piece["name"] for piece in pieces[1:]] == [None] * (len(pieces) - 1)
        assert len({piece["index"] for piece in pieces}) == 1
        message = reduce(add, chunks)
        assert message.content == "Let me see."
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [("get_weather", {"city": "Paris"})]
    assert llm.invoke("go").tool_calls[0]["args"] == {"city": "Paris"}
    blocks = llm.stream_events("go", version="v3").output.content_blocks
    assert [block["type"] for block in blocks] == ["text", "tool_call"]


def test_several_calls_have_different_indices():
    second = CALL_WEATHER.replace("Paris", "Rome")
    llm, _ = scripted(f"{CALL_WEATHER}\n{second}")
    message = reduce(add, llm.bind_tools([get_weather]).stream("go"))
    assert [call["args"]["city"] for call in message.tool_calls] == ["Paris", "Rome"]
    assert len({call["id"] for call in message.tool_calls}) == 2
    (call,) = llm.bind_tools([get_weather], parallel_tool_calls=False).invoke("go").tool_calls
    assert call["args"] == {"city": "Paris"}
    with pytest.raises(core.ConfigError, match="parallel_tool_calls='no'"):
        llm.bind_tools([get_weather], parallel_tool_calls="no").invoke("go")


def test_a_call_inside_which_the_budget_ends_is_invalid_on_every_path():
    reply = CALL_WEATHER.replace("Paris", "Paris " * 30)
    llm = scripted(reply)[0].bind_tools([get_weather], max_tokens=20)
    for message in (llm.invoke("go"), reduce(add, llm.stream("go"))):
        assert message.tool_calls == []
        assert [call["name"] for call in message.invalid_tool_calls] == ["get_weather"]
        assert message.response_metadata["finish_reason"] == "length"
        adafuse = message.response_metadata["adafuse"]
        assert "ended inside" in adafuse["invalid_tool_calls"][0]["error"]
        assert [(text["kind"], text["fields"]) for text in adafuse["library_text"]] == [("shortened", ["city"])]
    for message in (llm.invoke("go", complete_calls=True), reduce(add, llm.stream("go", complete_calls=True))):
        (call,) = message.tool_calls
        assert set(call["args"]["city"].split()) == {"Paris"}
        assert message.response_metadata["adafuse"]["library_text"]


def test_a_stop_string_inside_a_call_or_a_thought_does_not_end_the_answer():
    llm = scripted(f"<think>\nhm\n</think>\n\n{CALL_WEATHER}")[0].bind_tools([get_weather], stop=["\n", "ris"])
    for message in (llm.invoke("go"), reduce(add, llm.stream("go"))):
        assert [call["args"] for call in message.tool_calls] == [{"city": "Paris"}]
        assert message.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_structured_answer_is_complete_and_has_the_library_text(method, caplog):
    text = PARIS.replace("Paris", "Paris " * 40)
    reply = text if method == "json_schema" else f'<tool_call>\n{{"name": "CityOf", "arguments": {text}}}\n</tool_call>'
    llm = scripted(reply)[0].with_structured_output(CityOf, method=method, include_raw=True, max_tokens=24)
    answer = llm.invoke("go")
    assert answer["parsing_error"] is None
    assert answer["parsed"].people == 2
    assert set(answer["parsed"].name.split()) == {"Paris"}
    (written,) = answer["raw"].response_metadata["adafuse"]["library_text"]
    assert (written["kind"], written["fields"]) == ("shortened", ["name"])
    assert "shortened: name" in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_timeout_error_has_the_partial_answer(asynchronous):
    llm, _ = scripted("word ", ends_answer=False, steps=3, max_tokens=None, timeout=2.0)
    with pytest.raises(langchain.ModelTimeoutError) as caught:
        await llm.ainvoke("go") if asynchronous else llm.invoke("go")
    assert caught.value.partial.text.split() == ["word"] * 3
    assert caught.value.partial.reason == "cancelled"


def test_calls_and_results_reach_the_members():
    llm, member = scripted(weather_report)
    bound = llm.bind_tools([get_weather])
    asked = HumanMessage("What is the weather in Paris?")
    call = bound.invoke([asked])
    result = get_weather.invoke(call.tool_calls[0])
    answer = bound.invoke([asked, call, result])
    assert answer.content == "It is 12 degrees and rainy."
    call_id = call.tool_calls[0]["id"]
    assert member.prompts[-1][1:] == (
        Message(role="assistant", tool_calls=(ToolCall(name="get_weather", arguments={"city": "Paris"}, id=call_id),)),
        Message(role="tool", content="12 degrees and rainy", tool_call_id=call_id, name="get_weather"),
    )


# --- structured output ---


class CityV1(BaseModelV1):
    """A city."""

    name: str
    people: int = 0


class CityDict(TypedDict):
    """A city."""

    name: str
    people: int


SCHEMAS = {
    "pydantic": (City, City),
    "pydantic of old": (CityV1, CityV1),
    "typed dict": (CityDict, dict),
    "JSON schema": (City.model_json_schema(), dict),
    "OpenAI function": (
        {"name": "City", "parameters": {"type": "object", "properties": {"name": {}, "people": {}}}},
        dict,
    ),
}


@pytest.mark.parametrize(("schema", "kind"), SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_answers_come_in_the_form_of_a_schema(schema, kind, method):
    name = schema.__name__ if isinstance(schema, type) else "City"
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {PARIS}}}\n</tool_call>'
    llm, _ = scripted(call if method == "function_calling" else PARIS)
    chain = llm.with_structured_output(schema, method=method)
    answers = [chain.invoke("go"), await chain.ainvoke("go"), list(chain.stream("go"))[-1]]
    for answer in answers:
        assert isinstance(answer, kind)
        assert dict(answer) == {"name": "Paris", "people": 2}


def test_a_json_schema_needs_no_name():
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "people": {"type": "integer"}}}
    for strict in (None, True):
        llm = scripted(PARIS)[0].with_structured_output(schema, strict=strict)
        assert llm.invoke("go") == {"name": "Paris", "people": 2}


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_the_small_models_write_only_valid_objects(method):
    city = ChatAdaFuse(max_tokens=48).with_structured_output(City, method=method).invoke("Hello!")
    assert isinstance(city, City)


def test_json_mode_works_without_a_schema():
    llm = ChatAdaFuse(max_tokens=48)
    assert isinstance(llm.with_structured_output(method="json_mode").invoke("Hello!"), dict)
    with pytest.raises(core.ConfigError, match="no schema"):
        llm.with_structured_output(method="json_schema")


def test_include_raw_returns_the_message_and_the_parsing_error():
    llm, _ = scripted(PARIS)
    whole = llm.with_structured_output(City, include_raw=True).invoke("go")
    assert isinstance(whole["raw"], AIMessage)
    assert (whole["parsed"], whole["parsing_error"]) == (City(name="Paris", people=2), None)
    cut = llm.with_structured_output(City, include_raw=True, stop=["2"]).invoke("go")
    assert cut["parsed"] is None
    assert isinstance(cut["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match="can't read the answer"):
        llm.with_structured_output(City, stop=["2"]).invoke("go")


def test_include_raw_passes_the_options_of_a_call_to_the_model():
    llm, _ = scripted(PARIS)
    chain = llm.with_structured_output(City, include_raw=True)
    cancelled = threading.Event()
    cancelled.set()
    for options, error in (
        ({"cancel": cancelled}, core.CancelledError),
        ({"timeout": 1e-9}, core.DeadlineError),
        ({"nonsense": 1}, core.ConfigError),
    ):
        with pytest.raises(error):
            chain.invoke("go", **options)
        with pytest.raises(error):
            list(chain.stream("go", **options))
    assert isinstance(chain.invoke("go", stop=["2"])["parsing_error"], OutputParserException)
    *_, last = chain.stream("go", max_tokens=50)
    assert last.keys() & {"parsed", "parsing_error"}
    merged = reduce(add, chain.stream("go"))
    assert (merged["parsed"], merged["raw"].text) == (City(name="Paris", people=2), PARIS)


async def test_include_raw_streams_asynchronously():
    chain = scripted(PARIS)[0].with_structured_output(City, include_raw=True)
    found = [chunk async for chunk in chain.astream("go", max_tokens=50)]
    assert found[0].keys() == {"raw"}
    assert (await chain.ainvoke("go", max_tokens=50))["parsed"] == City(name="Paris", people=2)
    with pytest.raises(core.ConfigError):
        await chain.ainvoke("go", nonsense=1)


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
async def test_a_stream_of_nothing_but_null_has_one_value(method):
    called = '<tool_call>\n{"name": "answer", "arguments": {"value": null}}\n</tool_call>'
    llm, _ = scripted(called if method == "function_calling" else "null")
    chain = llm.with_structured_output(City | None, method=method)
    assert list(chain.stream("go")) == [None]
    assert [found async for found in chain.astream("go")] == [None]
    assert chain.invoke("go") is None


class Tags(BaseModel):
    """Tags of a text."""

    tags: set[str]


def test_schema_parts_that_can_not_be_enforced_are_logged_or_an_error(caplog):
    llm, _ = scripted('{"tags": ["a", "b"]}')
    for method in ("json_schema", "function_calling"):
        with pytest.raises(core.ConfigError, match="uniqueItems"):
            llm.with_structured_output(Tags, method=method, strict=True).invoke("go")
    assert llm.with_structured_output(Tags).invoke("go").tags == {"a", "b"}
    assert "uniqueItems" in caplog.text


def test_wrong_methods_and_options_are_refused():
    llm, _ = scripted()
    with pytest.raises(core.ConfigError, match="expected one of json_schema"):
        llm.with_structured_output(City, method="xml")
    with pytest.raises(core.ConfigError, match="strict"):
        llm.with_structured_output(City, method="json_mode", strict=True)
    with pytest.raises(core.ConfigError, match="unknown generation option 'max_token'"):
        llm.with_structured_output(City, max_token=3).invoke("go")


@pytest.mark.parametrize(
    ("response_format", "reply"),
    [
        ({"type": "text"}, TEXT),
        ({"type": "json_object"}, '{"any": [1]}'),
        ({"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}, PARIS),
    ],
)
def test_response_format_is_understood_in_openais_form(response_format, reply):
    assert scripted(reply)[0].invoke("go", response_format=response_format).content == reply
    if response_format["type"] != "text":
        with pytest.raises(core.MemberError, match="grammar"):
            scripted("free text")[0].invoke("go", response_format=response_format)


@pytest.mark.parametrize("wrong", [City, "json", {}, {"type": "xml"}, {"type": "json_schema", "schema": {}}])
def test_other_response_formats_are_refused(wrong):
    with pytest.raises(core.ConfigError, match="response_format"):
        scripted()[0].invoke("go", response_format=wrong)


def test_a_grammar_is_an_option_of_a_call():
    llm = ChatAdaFuse()
    assert llm.invoke(QUESTION, grammar=Grammar.regex("(Rome|Paris)!")).content == "Paris!"
    with pytest.raises(core.ConfigError, match="both response_format and grammar"):
        llm.invoke(QUESTION, grammar=Grammar.json_object(), response_format={"type": "json_object"})


# --- agents ---


def test_an_agent_of_small_models_calls_one_tool_after_the_other():
    agent = create_agent(ChatAdaFuse(), [get_weather, calculator])
    asked = "What is the weather in Paris and what is 12 times 7?"
    messages = agent.invoke({"messages": [HumanMessage(asked)]})["messages"]
    called = [call["name"] for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]
    assert called == ["get_weather", "calculator"]
    assert messages[-1].content == "It is 12 degrees and rainy in Paris and 12 * 7 is 84."


async def test_graphs_stream_the_messages_of_an_agent():
    agent = create_agent(ChatAdaFuse(), [get_weather])
    asked = {"messages": [HumanMessage("What is the weather in Paris?")]}
    streamed = [message for message, _ in agent.stream(asked, stream_mode="messages")]
    assert [message async for message, _ in agent.astream(asked, stream_mode="messages")]
    chunks = [message for message in streamed if isinstance(message, AIMessageChunk)]
    by_run = {chunk.id: [other for other in chunks if other.id == chunk.id] for chunk in chunks}
    call, answer = (reduce(add, run) for run in by_run.values())
    assert call.tool_calls[0]["args"] == {"city": "Paris"}
    assert answer.content == "It is 12 degrees and rainy in Paris."
    assert len(by_run[answer.id]) > 2
    assert [message.content for message in streamed if isinstance(message, ToolMessage)] == ["12 degrees and rainy"]


def city_report(messages):
    """A scripted reply that calls the weather tool, and then answers in the requested schema."""
    if messages[-1].role != "tool":
        return CALL_WEATHER
    return PARIS


def test_an_agent_with_provider_strategy_answers_in_a_schema_or_calls_tools():
    llm, _ = scripted(city_report)
    for form in (ProviderStrategy(City), City):  # the profile reports structured output
        agent = create_agent(llm, [get_weather], response_format=form)
        answer = agent.invoke({"messages": [HumanMessage("Where does it rain?")]})
        assert answer["structured_response"] == City(name="Paris", people=2)
        assert len(answer["messages"]) == 4
    alone = create_agent(llm, [], response_format=ProviderStrategy(City))
    assert alone.invoke({"messages": [ToolMessage("x", tool_call_id="c")]})["structured_response"].name == "Paris"


def test_an_agent_with_tool_strategy_answers_by_a_call():
    def reply(messages):
        return (
            f'<tool_call>\n{{"name": "City", "arguments": {PARIS}}}\n</tool_call>' if asked(messages) else CALL_WEATHER
        )

    def asked(messages):
        return messages[-1].role == "tool"

    llm, _ = scripted(reply)
    agent = create_agent(llm, [get_weather], response_format=ToolStrategy(City))
    answer = agent.invoke({"messages": [HumanMessage("Where does it rain?")]})
    assert answer["structured_response"] == City(name="Paris", people=2)


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_of_small_models_answers_in_a_schema(strategy):
    agent = create_agent(ChatAdaFuse(max_tokens=48, complete_calls=True), [], response_format=strategy(City))
    assert isinstance(agent.invoke({"messages": [HumanMessage("Hello!")]})["structured_response"], City)


# --- counting ---


def test_messages_are_counted_with_template_and_tools():
    llm, _ = scripted(CALL_WEATHER)
    messages = [SystemMessage("s t"), HumanMessage("hi")]
    usage = llm.invoke(messages).usage_metadata
    assert llm.get_num_tokens_from_messages(messages) == usage["input_tokens"]
    with_tools = llm.get_num_tokens_from_messages(messages, tools=[get_weather])
    assert with_tools == llm.bind_tools([get_weather]).invoke(messages).usage_metadata["input_tokens"]
    assert with_tools > usage["input_tokens"]
    assert llm.get_num_tokens_from_messages([]) == 0


def test_token_counts_are_the_largest_of_the_members():
    llm, ensemble = ChatAdaFuse(), Ensemble()
    asked = [{"role": "user", "content": QUESTION}]
    assert llm.get_num_tokens_from_messages([HumanMessage(QUESTION)]) == max(ensemble.count_tokens(asked).values())
    assert llm.get_num_tokens(QUESTION) == max(ensemble.count_text_tokens(QUESTION).values())
    assert len(llm.get_token_ids(QUESTION)) == llm.get_num_tokens(QUESTION)
    custom = ChatAdaFuse(custom_get_token_ids=lambda text: [ord(character) for character in text])
    assert custom.get_num_tokens_from_messages([HumanMessage("ab")]) == len("Human: ab")


def test_messages_are_trimmed_by_their_tokens():
    llm = ChatAdaFuse()
    messages = [HumanMessage("one two three"), AIMessage("four"), HumanMessage("five")]
    limit = llm.get_num_tokens_from_messages(messages[-1:])
    assert trim_messages(messages, max_tokens=limit, token_counter=llm) == messages[-1:]


# --- errors ---


async def test_an_overlong_prompt_can_be_caught_by_either_class():
    llm, _ = scripted(context_window=4)
    for kind in (core.ContextOverflowError, langchain.ContextOverflowError):
        with pytest.raises(kind, match=r"'left'.*22 tokens.*4"):
            llm.invoke("far " * 21)
        with pytest.raises(kind):
            await llm.ainvoke("far " * 21)
        with pytest.raises(kind):
            list(llm.stream("far " * 21))


def test_a_missing_model_can_be_caught_by_either_class(tmp_path):
    llm = ChatAdaFuse(members=[str(tmp_path / "nowhere")])
    for kind in (core.ModelNotFoundError, langchain.ModelNotFoundError):
        with pytest.raises(kind, match="nowhere"):
            llm.invoke("go")


def test_fallbacks_and_retries_work():
    failing, fine = scripted(fail_after=0)[0], scripted("fine")[0]
    assert failing.with_fallbacks([fine]).invoke("go").content == "fine"
    assert fine.with_retry().invoke("go").content == "fine"


def test_summarization_uses_the_context_window_of_the_profile():
    llm, member = scripted("fine", context_window=1000)
    summary = SummarizationMiddleware(llm, trigger=("fraction", 0.05), keep=("messages", 1))
    talk = [HumanMessage("word " * 20), AIMessage("word " * 20), HumanMessage("go")]
    agent = create_agent(llm, [], middleware=[summary])
    assert len(agent.invoke({"messages": talk[-1:]})["messages"]) == 2
    assert len(member.prompts) == 1
    agent.invoke({"messages": talk})
    assert len(member.prompts) == 3
    assert [message.content for message in member.prompts[-1][1:]] == ["go"]


# --- profile, traces, copies ---


def test_the_profile_has_the_capabilities_of_all_members(tmp_path):
    profile = ChatAdaFuse().profile
    assert profile["max_input_tokens"] == Ensemble().context_window
    assert (
        ChatAdaFuse(members=["small:aspen", {"model": "small:birch", "context_window": 99}]).profile["max_input_tokens"]
        == 99
    )
    assert (
        ChatAdaFuse(members=["small:aspen", {"model": "small:birch", "context_window": 99}], model="aspen").profile[
            "max_input_tokens"
        ]
        == Ensemble({"members": ["small:aspen"]}).context_window
    )
    for ability in ("tool_calling", "tool_choice", "tool_call_streaming", "structured_output", "text_inputs"):
        assert profile[ability] is True
    for kind in ("image", "image_url", "pdf", "audio", "video"):
        assert profile[f"{kind}_inputs"] is False
    assert scripted(context_window=7)[0].profile["max_input_tokens"] == 7
    for unknown in ("some/model", "no repository", str(tmp_path)):
        assert "max_input_tokens" not in ChatAdaFuse(members=["small:aspen", unknown]).profile
    assert ChatAdaFuse(profile={"max_input_tokens": 5}).profile == {"max_input_tokens": 5}


def test_the_profile_names_the_model_its_weights_and_the_bound_of_answers():
    profile = ChatAdaFuse().profile
    assert profile["name"] == "aspen+birch"
    assert profile["open_weights"] is True
    assert profile["max_output_tokens"] == profile["max_input_tokens"]
    assert profile["attachment"] is False
    ready_made = scripted(context_window=7)[0].profile
    assert ready_made["max_output_tokens"] == 7
    assert "open_weights" not in ready_made
    assert set(profile) <= set(get_type_hints(ModelProfile))


def test_the_profile_tells_whether_temperature_is_refused():
    assert ChatAdaFuse().profile["temperature"] is True
    alone = ChatAdaFuse(strategy="single")
    assert alone.profile["temperature"] is False
    with pytest.raises(ConfigError, match="temperature"):
        alone.invoke("Hello!", temperature=0.5)


def test_the_profile_tells_whether_all_members_reason():
    def member(name, template, **options):
        return {"model": f"small:{name}", "chat_template": template, **options}

    thinks = "{{ messages[0].content }}<think></think>"
    plain = "{{ messages[0].content }}"
    quiet = member("birch", thinks, template_kwargs={"enable_thinking": False})
    reasoning = {
        "both": [member("aspen", thinks), member("birch", thinks)],
        "one": [member("aspen", thinks), member("birch", plain)],
        "told not to": [member("aspen", thinks), quiet],
    }
    found = {name: ChatAdaFuse(members=members).profile["reasoning_output"] for name, members in reasoning.items()}
    assert found == {"both": True, "one": False, "told not to": False}
    assert ChatAdaFuse().profile["reasoning_output"] is False
    assert "reasoning_output" not in ChatAdaFuse(members=["small:aspen", "some/model"]).profile


def test_traces_contain_provider_model_and_settings():
    llm, _ = scripted(max_tokens=9, stop=["x"])
    assert llm._get_ls_params(temperature=0.5) == {
        "ls_provider": "adafuse",
        "ls_model_type": "chat",
        "ls_model_name": "left+right",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert llm._get_ls_params(stop=["y"], max_tokens=3, model="left")["ls_model_name"] == "left"
    assert "adafuse" in llm.metadata["lc_versions"]


def test_nothing_shown_contains_a_secret():
    llm = ChatAdaFuse(members=["a", {"model": "b", "model_kwargs": {"token": "hf_secret"}}], api_key="hf_secret")
    shown = [repr(llm), str(llm.asdict()), llm.get_name(), str(llm._serialized), str(llm._get_ls_params())]
    assert not any("hf_secret" in text for text in shown)


def test_copies_share_models_and_give_the_same_text():
    llm = ChatAdaFuse(max_tokens=12)
    text, before = llm.invoke(QUESTION).content, registry.loaded()
    twins = [
        copy.copy(llm),
        copy.deepcopy(llm),
        llm.model_copy(update={"max_new_tokens": 12}),
        pickle.loads(pickle.dumps(llm)),
        llm.configurable_fields(tau=ConfigurableField(id="tau")).with_config(configurable={"tau": llm.tau}),
        llm.bind(max_tokens=12),
        ChatAdaFuse(max_tokens=12),
    ]
    for twin in twins:
        assert twin.invoke(QUESTION).content == text
    llm.invoke(QUESTION, model="birch")
    assert registry.loaded() == before
    assert len(pickle.dumps(llm)) < 20_000
