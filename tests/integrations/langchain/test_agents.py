"""LangChain applications with real models: agents, RAG, middleware, fallbacks, caches, traces."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import reduce
from importlib.resources import files
from operator import add
from pathlib import Path
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRequest,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    wrap_model_call,
    wrap_tool_call,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.exceptions import ContextOverflowError
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import ToolException, tool
from langchain_core.tracers.context import collect_runs
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from adafuse_core.errors import MemberError
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse
from tests.integrations.langchain.conftest import QUESTION, calculator, get_weather

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")  # events of version 3

WEATHER = "What is the weather in Paris?"
TWO_THINGS = "What is the weather in Paris and what is 12 times 7?"
TOLD = "It is 12 degrees and rainy in Paris and 12 * 7 is 84."
PARIS = "The capital of France is Paris."
PERU = "What is the capital of Peru?"


@tool
def get_time(city: str) -> str:
    """Get the local time in a city."""
    return "10:30"


class Stay(BaseModel):
    """A stay in a hotel."""

    nights: int = Field(ge=1, le=99)
    room: Literal["single", "double"]


class StayDict(TypedDict):
    """A stay in a hotel."""

    nights: int
    room: Literal["single", "double"]


def asking(*questions):
    return {"messages": [HumanMessage(question) for question in questions]}


def called(messages):
    """Names and arguments of all calls, in order."""
    return [(call["name"], call["args"]) for message in messages for call in getattr(message, "tool_calls", ())]


def turns(streamed):
    """The model's messages, merged from a stream of chunks."""
    chunks = [message for message in streamed if isinstance(message, AIMessageChunk)]
    runs = dict.fromkeys(chunk.id for chunk in chunks)
    return [reduce(add, [chunk for chunk in chunks if chunk.id == run]) for run in runs]


# --- the agent loop ---


def test_an_agent_does_two_things_with_two_tools():
    messages = create_agent(ChatAdaFuse(), [get_weather, calculator, get_time]).invoke(asking(TWO_THINGS))["messages"]
    kinds = [HumanMessage, AIMessage, ToolMessage, AIMessage, ToolMessage, AIMessage]
    assert [type(message) for message in messages] == kinds
    assert called(messages) == [("get_weather", {"city": "Paris"}), ("calculator", {"expression": "12 * 7"})]
    assert messages[-1].text == TOLD
    reasons = [message.response_metadata["finish_reason"] for message in messages if isinstance(message, AIMessage)]
    assert reasons == ["tool_calls", "tool_calls", "stop"]


async def test_an_agent_gives_the_same_on_every_path():
    agent = create_agent(ChatAdaFuse(), [get_weather, calculator])
    asked = asking(TWO_THINGS)
    final = [
        (await agent.ainvoke(asked))["messages"],
        list(agent.stream(asked, stream_mode="values"))[-1]["messages"],
        [state async for state in agent.astream(asked, stream_mode="values")][-1]["messages"],
        agent.batch([asked])[0]["messages"],
        agent.stream_events(asked, version="v3").output["messages"],
    ]
    for messages in final:
        assert messages[-1].text == TOLD
        assert len(called(messages)) == 2


async def test_every_word_of_an_agent_is_streamed_as_it_is_decided():
    agent = create_agent(ChatAdaFuse(), [get_weather, calculator])
    asked = asking(TWO_THINGS)
    for streamed in (
        [message for message, _ in agent.stream(asked, stream_mode="messages")],
        [message async for message, _ in agent.astream(asked, stream_mode="messages")],
    ):
        weather, product, answer = turns(streamed)
        assert called([weather, product]) == [
            ("get_weather", {"city": "Paris"}),
            ("calculator", {"expression": "12 * 7"}),
        ]
        assert answer.text == TOLD
        assert len([m for m in streamed if m.id == answer.id and m.text]) > 6
        assert [m.text for m in streamed if isinstance(m, ToolMessage)] == ["12 degrees and rainy", "84"]
        pieces = [piece for m in streamed if m.id == weather.id for piece in m.tool_call_chunks]
        assert pieces[0]["name"] == "get_weather"
        assert len(pieces) > 1


async def test_events_of_version_2_contain_models_and_tools():
    agent = create_agent(ChatAdaFuse(), [get_weather])
    events = [event async for event in agent.astream_events(asking(WEATHER), version="v2")]
    chunks = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    call, answer = turns(chunks)
    assert called([call]) == [("get_weather", {"city": "Paris"})]
    assert answer.text == "It is 12 degrees and rainy in Paris."
    ends = [event["data"]["output"] for event in events if event["event"] == "on_chat_model_end"]
    assert [end.usage_metadata for end in ends] == [call.usage_metadata, answer.usage_metadata]
    assert [event["name"] for event in events if event["event"] == "on_tool_end"] == ["get_weather"]


async def test_streams_of_version_3_contain_models_and_tools():
    agent = create_agent(ChatAdaFuse(), [get_weather])
    seen = []
    for message in agent.stream_events(asking(WEATHER), version="v3").messages:
        seen.append(
            ("".join(message.text), called([message.output]), message.output.usage_metadata["output_tokens"] > 0)
        )
    expected = [("", [("get_weather", {"city": "Paris"})], True), ("It is 12 degrees and rainy in Paris.", [], True)]
    assert seen == expected
    run = await agent.astream_events(asking(WEATHER), version="v3")
    texts = [await message.text async for message in run.messages]
    assert texts == [text for text, *_ in expected]


def test_a_conversation_continues_from_a_checkpoint():
    agent = create_agent(ChatAdaFuse(), [get_weather], checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}}
    agent.invoke(asking(WEATHER), thread)
    state = agent.invoke(asking(QUESTION), thread)
    assert [message.text for message in state["messages"] if isinstance(message, HumanMessage)] == [WEATHER, QUESTION]
    assert state["messages"][-1].text
    kept = agent.get_state(thread).values["messages"][1]
    assert called([kept]) == [("get_weather", {"city": "Paris"})]
    assert kept.response_metadata["model_name"] == "aspen+birch"


# --- tools ---


def test_a_failing_tool_is_reported_to_the_model():
    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        raise ToolException("no such city")

    get_weather.handle_tool_error = True
    messages = create_agent(ChatAdaFuse(), [get_weather]).invoke(asking(WEATHER))["messages"]
    assert [message.status for message in messages if isinstance(message, ToolMessage)] == ["error"]
    assert isinstance(messages[-1], AIMessage)
    llm = ChatAdaFuse().bind_tools([get_weather])
    fine = [*messages[:2], messages[2].model_copy(update={"status": "success"})]
    failed, plain = (llm.invoke(talk).usage_metadata["input_tokens"] for talk in (messages[:3], fine))
    assert failed > plain  # the result starts with "Error" for the model


def test_an_error_of_a_tool_may_be_handled_by_middleware():
    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        raise KeyError(city)

    @wrap_tool_call
    def told(request, handler):
        try:
            return handler(request)
        except KeyError as error:
            return ToolMessage(f"unknown: {error}", tool_call_id=request.tool_call["id"], status="error")

    messages = create_agent(ChatAdaFuse(), [get_weather], middleware=[told]).invoke(asking(WEATHER))["messages"]
    assert messages[2].text == "unknown: 'Paris'"
    assert isinstance(messages[-1], AIMessage)
    with pytest.raises(KeyError):
        create_agent(ChatAdaFuse(), [get_weather]).invoke(asking(WEATHER))


@tool
def raise_flag(up: bool) -> str:
    """Raise or lower the flag."""
    return "done"


@tool
def turn_light(on: bool) -> str:
    """Turn the light on or off."""
    return "done"


@pytest.mark.parametrize("parallel", [True, False])
def test_calls_of_one_turn_are_all_answered(random_members, parallel):
    @wrap_model_call
    def settings(request: ModelRequest, handler):
        done = any(isinstance(message, ToolMessage) for message in request.messages)
        options = {"parallel_tool_calls": parallel, "max_tokens": 4 if done else 64}
        return handler(request.override(model_settings=options, tool_choice="none" if done else "any"))

    llm = ChatAdaFuse(members=random_members, strategy="adafuse")  # by which these models write several calls
    agent = create_agent(llm, [raise_flag, turn_light], middleware=[settings])
    counts = []
    for question in ("Hello!", "Go on.", "Light!"):
        messages = agent.invoke(asking(question))["messages"]
        calls, results = messages[1].tool_calls, [m for m in messages if isinstance(m, ToolMessage)]
        assert [result.tool_call_id for result in results] == [call["id"] for call in calls]
        assert {(result.status, result.text) for result in results} == {("success", "done")}
        assert len({call["id"] for call in calls}) == len(calls)
        counts.append(len(calls))
    assert max(counts) > 1 if parallel else max(counts) == 1


def test_a_limit_of_calls_ends_the_loop():
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior="end")
    agent = create_agent(ChatAdaFuse(), [get_weather, calculator], middleware=[limit])
    messages = agent.invoke(asking(TWO_THINGS))["messages"]
    assert next(m.text for m in messages if isinstance(m, ToolMessage)) == "12 degrees and rainy"
    assert "84" not in [m.text for m in messages]


# --- structured output ---


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy, None])
@pytest.mark.parametrize("schema", [Stay, StayDict], ids=["pydantic", "typed dict"])
@pytest.mark.parametrize("members", ["trained", "random"])
async def test_an_agent_answers_in_a_schema(strategy, schema, members, random_members):
    llm = ChatAdaFuse(
        max_tokens=40, complete_calls=True, **({"members": random_members} if members == "random" else {})
    )
    agent = create_agent(llm, [], response_format=strategy(schema) if strategy else schema)
    for question in ("Hello!", QUESTION):
        answer = (await agent.ainvoke(asking(question)))["structured_response"]
        assert TypeAdapter(schema).validate_python(answer, strict=True) == answer


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_an_agent_with_tools_and_a_schema_writes_nothing_else(strategy, random_members):
    llm = ChatAdaFuse(members=random_members, max_tokens=40, complete_calls=True)
    agent = create_agent(llm, [raise_flag], response_format=strategy(Stay))
    said, arguments = [], {"raise_flag": raise_flag.args_schema, "Stay": Stay}
    for question in ("Hello!", WEATHER, QUESTION):
        with suppress(GraphRecursionError):  # a model with random weights may call forever
            for update in agent.stream(asking(question), {"recursion_limit": 5}, stream_mode="updates"):
                said += update.get("model", {}).get("messages", [])[:1]
    assert len(said) >= 3
    for message in said:
        assert message.invalid_tool_calls == []
        for call in message.tool_calls:
            arguments[call["name"]].model_validate(call["args"], strict=True)
        if not message.tool_calls:
            Stay.model_validate_json(message.text, strict=True)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_a_chain_gives_objects(method):
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    chain = prompt | ChatAdaFuse(max_tokens=40).with_structured_output(Stay, method=method)
    questions = [{"question": QUESTION}, {"question": "Hello!"}]
    answers = chain.batch(questions)
    assert all(isinstance(answer, Stay) for answer in answers)
    assert await chain.abatch(questions) == answers
    assert [list(chain.stream(question))[-1] for question in questions] == answers
    whole = ChatAdaFuse(max_tokens=40).with_structured_output(Stay, method=method, include_raw=True)
    parsed = [(prompt | whole).invoke(question) for question in questions]
    assert [answer["parsed"] for answer in parsed] == answers
    assert {answer["parsing_error"] for answer in parsed} == {None}


def test_an_object_grows_while_it_streams():
    class Names(TypedDict):
        """Names of friends."""

        friends: list[str]

    chain = ChatAdaFuse(max_tokens=40).with_structured_output(Names)
    seen = list(chain.stream(PERU))
    assert len(seen) > 3
    assert all(set(partial) <= {"friends"} for partial in seen)
    sizes = [len("".join(partial.get("friends", []))) for partial in seen]
    assert sizes == sorted(sizes)
    TypeAdapter(Names).validate_python(seen[-1], strict=True)


# --- RAG ---

HERON = "How much does the silver heron weigh?"


class Keywords(BaseRetriever):
    """The two documents that share the most words with the question."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        wanted = set(query.lower().strip("?").split())

        def shared(document):
            return -len(wanted & set(document.page_content.lower().split()))

        return sorted(self.documents, key=shared)[:2]


@pytest.fixture(scope="module")
def retriever():
    folder = files("adafuse_integrations") / "cli/documents"
    return Keywords(documents=[Document(path.read_text(encoding="utf-8").strip()) for path in folder.iterdir()])


@pytest.mark.parametrize("kind", [AdaFuseLLM, ChatAdaFuse])
async def test_retrieved_documents_are_answered_from(kind, retriever):
    context = retriever | (lambda found: "\n\n".join(document.page_content for document in found))
    prompt = PromptTemplate.from_template("Context:\n{context}\n\nQuestion: {question}")
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | kind() | StrOutputParser()
    answer = chain.invoke(HERON)
    assert answer == "2 kilograms."
    pieces = [piece for piece in chain.stream(HERON) if piece]
    assert "".join(pieces) == answer
    assert len(pieces) > 1
    assert "".join([piece async for piece in chain.astream(HERON)]) == answer
    assert chain.batch([HERON, HERON]) == await chain.abatch([HERON, HERON]) == [answer] * 2
    events = [event async for event in chain.astream_events(HERON, version="v2")]
    assert "on_retriever_end" in {event["event"] for event in events}


# --- middleware, fallbacks, retries ---


class Outcomes(BaseCallbackHandler):
    """The finish reason or error of each model call."""

    def __init__(self):
        self.outcomes = []

    def on_llm_end(self, response, **_):
        self.outcomes.append("answer")

    def on_llm_error(self, error, **_):
        self.outcomes.append(type(error).__name__)


def long_talk(count):
    talk = []
    for number in range(count):
        talk += [HumanMessage(f"Tell story {number}. " + "word " * 40), AIMessage(f"Story {number}. " + "word " * 40)]
    return {"messages": [*talk, HumanMessage(QUESTION)]}


@pytest.mark.parametrize("turns", [4, 24])
async def test_a_long_conversation_is_summarized(turns):
    llm, heard = ChatAdaFuse(max_tokens=48), Outcomes()
    assert llm.profile["max_input_tokens"] == 2048
    shorten = SummarizationMiddleware(
        llm,
        trigger=("fraction", 0.1),
        keep=("messages", 1),
        token_counter=llm.get_num_tokens_from_messages,  # LangChain's own estimate is for larger vocabularies
    )
    agent = create_agent(llm, middleware=[shorten])
    state = await agent.ainvoke(long_talk(turns), {"callbacks": [heard]})
    summary, question, answer = state["messages"]
    assert summary.text.startswith("Here is a summary")
    assert (question.text, answer.text) == (QUESTION, PARIS)
    overflow = ["ContextOverflowError"] if turns == 24 else []  # then the middle of the summarized messages is dropped
    assert heard.outcomes == [*overflow, "answer", "answer"]


@pytest.fixture
def narrow():
    """A member with a small context window: it fits a question, a tool and a call."""
    return ChatAdaFuse(members=["small:aspen", {"model": "small:birch", "context_window": 80}])


def test_an_overlong_prompt_falls_back_to_members_with_longer_windows(narrow):
    question = "Please read this with care. " * 12 + QUESTION
    safe = narrow.with_fallbacks([ChatAdaFuse()], exceptions_to_handle=(ContextOverflowError,))
    for llm in (safe, narrow):
        assert llm.invoke(QUESTION).text == PARIS
    assert safe.invoke(question).text == "".join(chunk.text for chunk in safe.stream(question)) != ""
    assert safe.invoke(question).text == ChatAdaFuse().invoke(question).text
    with pytest.raises(ContextOverflowError, match="'birch'"):
        narrow.invoke(question)
    tools = safe.bind_tools([get_weather])
    assert called([tools.invoke(WEATHER)]) == [("get_weather", {"city": "Paris"})]


def test_an_agent_falls_back_too(narrow):
    agent = create_agent(narrow, [get_weather], middleware=[ModelFallbackMiddleware(ChatAdaFuse())])
    heard = Outcomes()
    messages = agent.invoke(asking(WEATHER), {"callbacks": [heard]})["messages"]
    assert messages[-1].text == "It is 12 degrees and rainy in Paris."
    assert heard.outcomes == ["answer", "ContextOverflowError", "answer"]


@pytest.mark.parametrize("kind", [AdaFuseLLM, ChatAdaFuse])
async def test_a_failed_call_is_retried(kind, monkeypatch):
    llm = kind()
    broken = llm._get_ensemble().members[1].backend.model.module
    plain, failures = broken.forward, []

    def fails_twice(*arguments, **options):
        if len(failures) < 2:
            failures.append(None)
            raise RuntimeError("out of memory")
        return plain(*arguments, **options)

    patient = llm.with_retry(
        retry_if_exception_type=(MemberError,), stop_after_attempt=3, wait_exponential_jitter=False
    )
    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fails_twice)
        for call in (patient.invoke, patient.ainvoke):
            failures.clear()
            answer = call("Who wrote Hamlet, please?")
            answer = answer if isinstance(answer, str | AIMessage) else await answer
            assert "Shakespeare" in (answer if isinstance(answer, str) else answer.text)
            assert len(failures) == 2
        failures.clear()
        with pytest.raises(MemberError, match=r"'birch'.*out of memory"):
            llm.invoke("Who wrote Hamlet, please?")


# --- caches ---


@pytest.fixture
def shared_cache():
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


@pytest.mark.parametrize("kind", [AdaFuseLLM, ChatAdaFuse])
async def test_a_shared_cache_gives_each_ensemble_its_own_answers(kind, shared_cache):
    question = "What is the capital of Peru and what is the currency of Japan?"
    ensembles = [kind(), kind(model="small:aspen"), kind(model="small:birch"), kind(branches=1), kind(max_tokens=3)]
    first = [llm.invoke(question) for llm in ensembles]
    assert len(shared_cache._cache) == len(ensembles)
    heard = Outcomes()
    again = [await llm.ainvoke(question, {"callbacks": [heard]}) for llm in ensembles]
    texts = [[answer if isinstance(answer, str) else answer.text for answer in row] for row in (first, again)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3
    assert len(shared_cache._cache) == len(ensembles)


def test_an_agent_with_a_cache_repeats_its_answer(shared_cache):
    agent = create_agent(ChatAdaFuse(), [get_weather])
    first, again = (agent.invoke(asking(WEATHER))["messages"] for _ in range(2))
    assert called(first) == called(again) == [("get_weather", {"city": "Paris"})]
    assert first[-1].text == again[-1].text == "It is 12 degrees and rainy in Paris."
    (other,) = ChatAdaFuse().bind_tools([get_time], tool_choice="any").invoke(WEATHER).tool_calls
    assert other["name"] == "get_time"  # another tool gives another answer


# --- traces ---


def test_runs_contain_model_and_usage():
    with collect_runs() as collected:
        create_agent(ChatAdaFuse(temperature=0.0, max_tokens=99), [get_weather]).invoke(asking(WEATHER))
    runs = [run for run in collected.traced_runs if run.run_type == "llm"]
    assert len(runs) == 2
    for run in runs:
        told = run.extra["metadata"]
        assert (told["ls_provider"], told["ls_model_name"], told["ls_model_type"]) == ("adafuse", "aspen+birch", "chat")
        assert (told["ls_temperature"], told["ls_max_tokens"]) == (0.0, 99)
        assert "adafuse" in told["lc_versions"]
        assert [tool["function"]["name"] for tool in run.extra["invocation_params"]["tools"]] == ["get_weather"]
        message = run.outputs["generations"][0][0]["message"]["kwargs"]
        assert message["usage_metadata"]["output_tokens"] > 0
        json.dumps(message["response_metadata"])


def test_usage_of_an_agent_is_the_sum_of_its_calls():
    heard = UsageMetadataCallbackHandler()
    agent = create_agent(ChatAdaFuse(), [get_weather, calculator])
    messages = agent.invoke(asking(TWO_THINGS), {"callbacks": [heard]})["messages"]
    told = [message.usage_metadata["total_tokens"] for message in messages if isinstance(message, AIMessage)]
    assert heard.usage_metadata["aspen+birch"]["total_tokens"] == sum(told) > 0


# --- the docs ---


def test_the_code_in_the_docs_runs(capsys):
    text = (Path(__file__).parents[3] / "docs/langchain.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {"__name__": "docs", "llm": ChatAdaFuse()}
    for block in blocks:
        if "meta-llama" not in block:  # it would be downloaded
            exec(compile(block, "docs", "exec", dont_inherit=True), names)
    assert len(blocks) > 8
    assert names["message"].tool_calls[0]["args"] == {"city": "Paris"}
    counts = {name: count for name, count in names["answer"].usage_metadata.items() if isinstance(count, int)}
    assert counts == {"input_tokens": 17, "output_tokens": 10, "total_tokens": 27}
    assert "It is 12 degrees and rainy in Paris." in capsys.readouterr().out
