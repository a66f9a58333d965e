"""`AdaFuseLLM` as LangChain applications use it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from langchain_core import exceptions as langchain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import GenerationChunk
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from adafuse_core import errors as core
from adafuse_core.chat.messages import Message
from adafuse_core.ensemble import Ensemble
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import registry
from adafuse_core.members.scripted import ScriptedMember
from adafuse_integrations.common.deadline import Cancellation
from adafuse_integrations.langchain import AdaFuseLLM
from tests import tiny
from tests.integrations.langchain import conftest
from tests.integrations.langchain.conftest import QUESTION, STOPPED, TEXT, collected, crew
from tests.integrations.stepped import LONG, stopped, until

ROOT = Path(__file__).parents[3]
scripted = partial(conftest.scripted, AdaFuseLLM)


def echo(prompt):
    """A scripted reply that depends only on the prompt."""
    text = prompt if isinstance(prompt, str) else prompt[-1].content
    return " ".join(f"{text}-{number}" for number in range(6))


class Heard(BaseCallbackHandler):
    """A callback handler that records its calls, per run."""

    def __init__(self):
        self.prompts, self.tokens, self.chunks, self.ends, self.errors = {}, {}, [], {}, []

    def on_llm_start(self, serialized, prompts, *, run_id, **_):
        self.prompts[run_id] = prompts[0]
        self.tokens[run_id] = []

    def on_llm_new_token(self, token, *, chunk=None, run_id, **_):
        self.tokens[run_id].append(token)
        self.chunks.append(chunk)

    def on_llm_end(self, response, *, run_id, **_):
        self.ends[run_id] = response

    def on_llm_error(self, error, **_):
        self.errors.append(error)

    def text_by_prompt(self):
        return {self.prompts[run]: "".join(tokens) for run, tokens in self.tokens.items()}


@pytest.fixture(scope="module")
def pair(tiny_models):
    """Arguments for two random models whose tokenizers disagree."""
    members = [{"model": str(tiny_models[name]), "dtype": "float64"} for name in ("bytes", "pieces")]
    return {"members": members, "max_tokens": 12}


# --- arguments ---


def test_by_default_the_members_are_the_small_models():
    assert [member.label for member in AdaFuseLLM().members] == list(Ensemble().names)


def test_members_are_names_mappings_or_configs(tmp_path):
    llm = AdaFuseLLM(members=["some/model", tmp_path, {"model": "other", "weight": 2.0}, MemberConfig(model="third")])
    assert [member.label for member in llm.members] == ["model", tmp_path.name, "other", "third"]
    assert llm.members[2].weight == 2.0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tua": 0.5}, "tua"),
        ({"tau": 1.5}, "tau"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_tokens": 3, "max_new_tokens": 3}, "both max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"strategy": "vote"}, "strategy"),
        ({"strategy": "single", "temperature": 0.5}, "temperature"),
        ({"members": []}, "members"),
        ({"members": [{"model": "a", "wieght": 1}]}, "did you mean 'weight'"),
        ({"prompt_format": "xml"}, "prompt_format"),
        ({"prompt_format": "raw", "system": "be kind"}, "system"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(arguments, problem):
    with pytest.raises(ValidationError, match=problem):
        AdaFuseLLM(**arguments)


def test_a_ready_made_ensemble_brings_its_settings_and_takes_others():
    ensemble = Ensemble(members=[ScriptedMember("a", TEXT)], tau=0.3, generation={"max_new_tokens": 2, "stop": ["x"]})
    llm = AdaFuseLLM.from_ensemble(ensemble, beams=1)
    assert (llm.tau, llm.beams, llm.max_new_tokens, llm.stop) == (0.3, 1, 2, ["x"])
    assert llm.invoke("go") == "one two."
    info = llm.generate(["go"]).generations[0][0].generation_info
    assert [word["text"] for word in info["adafuse"]["words"]] == ["one", " two."]
    with pytest.raises(ValidationError, match="other members"):
        AdaFuseLLM.from_ensemble(ensemble, members=["other"])


# --- text ---


async def test_all_ways_give_the_same_text_to_the_byte():
    llm, _ = scripted()
    assert llm.invoke("go") == TEXT
    assert "".join(llm.stream("go")) == TEXT
    assert await llm.ainvoke("go") == TEXT
    assert "".join(await collected(llm.astream("go"))) == TEXT
    assert llm.batch(["go"]) == await llm.abatch(["go"]) == [TEXT]


async def test_all_ways_give_the_same_text_with_real_models(pair):
    llm, prompt = AdaFuseLLM(**pair), "The quick brown"
    text = llm.invoke(prompt)
    assert text
    assert prompt not in text
    assert "".join(llm.stream(prompt)) == text
    assert await llm.ainvoke(prompt) == text
    assert "".join(await collected(llm.astream(prompt))) == text
    core_text = Ensemble({"members": pair["members"]}).generate(
        [{"role": "user", "content": prompt}], max_new_tokens=12
    )
    assert core_text.text == text


@pytest.mark.parametrize("reply", ["", " "])
async def test_an_empty_answer_is_still_a_stream(reply):
    llm, _ = scripted(reply)
    assert "".join(llm.stream("go")) == reply
    assert "".join(await collected(llm.astream("go"))) == reply
    assert llm.invoke("go") == reply


async def test_an_empty_prompt_is_refused():
    llm, _ = scripted()
    for prompt in ("", " "):
        with pytest.raises(core.PromptError, match="empty"):
            llm.invoke(prompt)
    with pytest.raises(core.PromptError, match="empty"):
        await llm.ainvoke("")


def test_it_composes_with_prompts_and_parsers():
    llm, member = scripted(echo)
    chain = PromptTemplate.from_template("say {word}") | llm | StrOutputParser()
    assert chain.invoke({"word": "hi"}).startswith("say hi-0")
    assert "".join(chain.stream({"word": "hi"})) == chain.invoke({"word": "hi"})
    (ChatPromptTemplate.from_messages([("system", "s"), ("user", "{word}")]) | llm).invoke({"word": "hi"})
    assert member.prompts[-1] == (Message(role="user", content="System: s\nHuman: hi"),)


# --- prompt format ---


def test_a_prompt_is_a_user_message_where_all_members_have_templates():
    llm, member = scripted(system="be kind")
    llm.invoke("go")
    assert member.prompts == [(Message(role="system", content="be kind"), Message(role="user", content="go"))]


def test_a_prompt_is_raw_text_where_a_member_has_no_template():
    members = [ScriptedMember("a", "x"), ScriptedMember("b", "x", chat=False)]
    llm = AdaFuseLLM.from_ensemble(Ensemble(members=members))
    llm.invoke("go")
    assert members[0].prompts == ["go"]
    with pytest.raises(core.ConfigError, match="no chat template"):
        llm.model_copy(update={"system": "be kind"}).invoke("go")
    with pytest.raises(core.TemplateError, match="'b'"):
        llm.model_copy(update={"prompt_format": "chat"}).invoke("go")


def test_raw_format_continues_the_prompt_as_it_stands():
    llm, member = scripted(prompt_format="raw")
    llm.invoke("Once upon ")
    assert member.prompts == ["Once upon "]


# --- stop and other options of a call ---


async def test_stop_strings_work_across_words_on_every_path_and_are_not_in_the_text():
    llm, _ = scripted()
    stop = ["two. Obs"]
    chunks = list(llm.stream("go", stop=stop))
    assert "".join(chunks) == STOPPED
    assert llm.invoke("go", stop=stop) == STOPPED
    assert await llm.ainvoke("go", stop=stop) == STOPPED
    assert "".join(await collected(llm.astream("go", stop=stop))) == STOPPED
    assert llm.batch(["go"], stop=stop) == await llm.abatch(["go"], stop=stop) == [STOPPED]
    assert llm.bind(stop=stop).invoke("go") == STOPPED
    assert not any("t" in chunk for chunk in chunks)


def test_stop_of_a_call_replaces_the_constructors():
    llm, _ = scripted(stop=["three"])
    assert llm.invoke("go") == "one two. Observation: "
    assert llm.invoke("go", stop=["two"]) == STOPPED
    assert llm.invoke("go", stop=["four"]) == "one two. Observation: three\n\n\t"
    assert llm.invoke("go", stop=[]) == TEXT


@pytest.mark.parametrize("options", [{"max_tokens": 2}, {"max_new_tokens": 2}])
async def test_call_options_are_honoured_on_every_path(options):
    llm, _ = scripted()
    assert llm.invoke("go", **options) == "one two."
    assert "".join(llm.stream("go", **options)) == "one two."
    assert await llm.ainvoke("go", **options) == "one two."
    assert "".join(await collected(llm.astream("go", **options))) == "one two."
    assert llm.bind(**options).batch(["go", "on"]) == ["one two."] * 2
    assert llm.invoke("go") == TEXT


def test_temperature_and_seed_of_a_call_are_honoured():
    members = [ScriptedMember("a", "left"), ScriptedMember("b", "right")]
    llm = AdaFuseLLM.from_ensemble(Ensemble(members=members))
    drawn = [llm.invoke("go", temperature=50.0, seed=seed) for seed in range(12)]
    assert set(drawn) == {"left", "right"}
    assert drawn == [llm.invoke("go", temperature=50.0, seed=seed) for seed in range(12)]
    assert llm.invoke("go") == "left"


@pytest.mark.parametrize("options", [{"max_token": 2}, {"tools": []}, {"cancelled": None}, {"tau": 0.5}])
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


def test_call_options_out_of_range_are_refused():
    llm, _ = scripted()
    with pytest.raises(core.ConfigError, match="temperature"):
        llm.invoke("go", temperature=-1)
    with pytest.raises(core.ConfigError, match="both max_tokens"):
        llm.invoke("go", max_tokens=1, max_new_tokens=1)


# --- metadata of a generation ---


def test_the_last_chunk_has_finish_reason_and_usage():
    llm, _ = scripted("a b c")
    *chunks, last = llm._stream("go")
    assert all(set(chunk.generation_info) == {"adafuse"} for chunk in chunks)
    assert last.generation_info["finish_reason"] == "stop"
    assert last.generation_info["stop"] is None
    assert last.generation_info["usage"] == {
        "prompt_tokens": {"left": 2, "right": 2},
        "completion_tokens": {"left": 3, "right": 3},
        "cached_tokens": {"left": 0, "right": 0},
        "read_tokens": {"left": 5, "right": 5},
    }


@pytest.mark.parametrize(
    ("options", "reason", "stop"),
    [({}, "stop", None), ({"stop": ["three"]}, "stop", "three"), ({"max_tokens": 3}, "length", None)],
)
async def test_every_path_reports_the_finish_reason(options, reason, stop):
    llm, heard = scripted()[0], Heard()
    list(llm.stream("go", {"callbacks": [heard]}, **options))
    infos = [response.generations[0][0].generation_info for response in heard.ends.values()]
    infos.append(llm.generate(["go"], **options).generations[0][0].generation_info)
    infos.append((await llm.agenerate(["go"], **options)).generations[0][0].generation_info)
    for info in infos:
        assert (info["finish_reason"], info["stop"]) == (reason, stop)


def test_chunks_carry_their_words_proposers_margins_and_scores():
    members = [ScriptedMember("a", "left side", margin=0.5), ScriptedMember("b", "right side", margin=1.0)]
    llm = AdaFuseLLM.from_ensemble(Ensemble(members=members, strategy="adafuse", max_words=1), trace="full")
    first, *_ = llm._stream("go")
    (played,) = first.generation_info["adafuse"]["rounds"]
    assert first.text == played["text"] == "left"
    assert played["proposers"] == ["a"]
    assert played["margins"] == {"a": [0.5], "b": [1.0]}
    assert played["member_scores"] == {"a": 0.125, "b": 5.0}
    assert played["score"] == pytest.approx((0.125 + 5.0) / 2)
    assert [(candidate["text"], candidate["proposers"]) for candidate in played["candidates"]] == [
        ("left", ["a"]),
        ("right", ["b"]),
    ]


def test_chunks_add_up_to_the_whole_answer_and_its_trace():
    llm, _ = scripted("one two. Observation: three")
    chunks = list(llm._stream("go", stop=["Observation: four"]))
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, GenerationChunk)
    assert whole.text == "one two. Observation: three"
    words = whole.generation_info["adafuse"]["words"]
    assert "".join(word["text"] for word in words) == whole.text
    assert whole.generation_info["finish_reason"] == "stop"
    assert json.loads(json.dumps(whole.generation_info)) == whole.generation_info
    assert llm.generate(["go"]).generations[0][0].generation_info == whole.generation_info


def test_the_trace_has_the_committed_text_if_the_budget_cuts_a_span():
    ensemble = Ensemble(members=[ScriptedMember("a", "one two three")], strategy="adafuse")
    llm = AdaFuseLLM.from_ensemble(ensemble, max_tokens=2, trace="full")
    info = llm.generate(["go"]).generations[0][0].generation_info
    (played,) = info["adafuse"]["rounds"]
    assert (played["text"], played["ends"]) == ("one two", False)
    assert played["candidates"][0]["text"] == "one two three"
    assert info["finish_reason"] == "length"


def test_a_lone_candidate_has_no_score(pair):
    llm = AdaFuseLLM(members=pair["members"][:1], branches=1, max_tokens=4, trace="full")
    info = llm.generate(["The quick"]).generations[0][0].generation_info
    assert {played["score"] for played in info["adafuse"]["rounds"]} == {None}


def test_token_usage_of_a_result_is_the_first_members():
    llm, _ = scripted("a b c")
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert llm.generate(["go", "go on"]).llm_output == {"model_name": "left+right", "token_usage": usage}


async def test_several_prompts_are_answered_in_one_async_call():
    llm, _ = scripted("a b c")
    answers = await llm.agenerate(["go", "go on", "and on"], timeout=60)
    assert [answer.text for (answer,) in answers.generations] == ["a b c"] * 3


# --- callbacks ---


async def test_callbacks_receive_each_token_once_on_every_path():
    llm, _ = scripted()
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
        assert "".join(chunk.text for chunk in heard.chunks) == TEXT
        (response,) = heard.ends.values()
        assert response.generations[0][0].text == TEXT
        assert heard.errors == []


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 2}])
async def test_tokens_of_a_batch_go_to_their_own_runs(options):
    llm, _ = scripted(echo)
    prompts = ["a", "b", "c"]
    for run in (llm.batch, llm.abatch):
        heard = Heard()
        answers = run(prompts, {"callbacks": [heard], **options})
        answers = await answers if asyncio.iscoroutine(answers) else answers
        assert heard.text_by_prompt() == dict(zip(prompts, answers, strict=True))


def test_callbacks_receive_no_tokens_for_several_prompts_in_one_generate():
    llm, heard = scripted(echo)[0], Heard()
    answers = llm.generate(["a", "b"], callbacks=[heard])
    assert set(heard.text_by_prompt().values()) == {""}
    assert [row[0].text for row in answers.generations] == [echo("a"), echo("b")]
    assert [response.generations[0][0].text for response in heard.ends.values()] == [echo("a"), echo("b")]


async def test_events_of_an_invoke_inside_a_chain_show_tokens():
    llm, _ = scripted()
    events = await collected(llm.astream_events("go", version="v2"))
    streamed = [event["data"]["chunk"] for event in events if event["event"] == "on_llm_stream"]
    assert "".join(getattr(chunk, "text", chunk) for chunk in streamed) == TEXT


def test_a_failing_handler_ends_the_generation():
    class Failing(BaseCallbackHandler):
        raise_error = True

        def on_llm_new_token(self, token, **_):
            raise KeyError(token)

    llm, member = scripted()
    with pytest.raises(KeyError):
        llm.invoke("go", {"callbacks": [Failing()]})
    assert member.drafts == 1


# --- batch ---


async def test_a_batch_is_as_many_invokes_in_order():
    llm, _ = scripted(echo)
    prompts = [f"p{number}" for number in range(9)]
    expected = [llm.invoke(prompt) for prompt in prompts]
    assert llm.batch(prompts) == await llm.abatch(prompts) == expected
    assert [answer for _, answer in sorted(llm.batch_as_completed(prompts))] == expected
    assert llm.batch([]) == []


async def test_a_bad_prompt_of_a_batch_fails_alone():
    llm, _ = scripted("fine", context_window=8)
    prompts = ["good", "far " * 20, "also good"]
    for answers in (llm.batch(prompts, return_exceptions=True), await llm.abatch(prompts, return_exceptions=True)):
        assert (answers[0], answers[2]) == ("fine", "fine")
        assert isinstance(answers[1], core.ContextOverflowError)
    with pytest.raises(core.ContextOverflowError):
        llm.batch(prompts)
    with pytest.raises(core.ContextOverflowError):
        await llm.abatch(prompts)


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_a_batch_obeys_max_concurrency(way, limit):
    llm, member = scripted("one two", members=1, steps=0)
    prompts, config = ["go"] * 6, {"max_concurrency": limit}
    answers = asyncio.to_thread(llm.batch, prompts, config) if way == "batch" else llm.abatch(prompts, config)
    task = asyncio.create_task(answers)
    await until(lambda: len(member.running) == limit)
    member.let(len(prompts) * 2)
    assert await task == ["one two"] * 6
    assert member.most == limit
    assert not member.running


# --- cache ---


async def test_the_cache_key_contains_call_options_and_stop_strings():
    llm, member = scripted(cache=InMemoryCache())
    assert llm.invoke("go", max_tokens=1) == "one"
    assert llm.invoke("go", max_tokens=2) == "one two."
    assert llm.invoke("go", stop=["two"]) == STOPPED
    assert llm.invoke("go") == TEXT
    assert await llm.ainvoke("go", max_tokens=1) == "one"
    assert await llm.ainvoke("go", max_tokens=3) == "one two. Observation:"
    answered = len(member.prompts)
    assert answered == 5
    assert llm.invoke("go", max_new_tokens=2) == "one two."
    assert llm.bind(max_tokens=3).invoke("go") == "one two. Observation:"
    assert await llm.ainvoke("go") == TEXT
    assert len(member.prompts) == answered


def test_the_cache_key_contains_constructor_options():
    cache = InMemoryCache()
    ensemble = Ensemble(members=[ScriptedMember("a", TEXT)])
    llm = AdaFuseLLM.from_ensemble(ensemble, cache=cache)
    assert llm.invoke("go") == TEXT
    assert llm.model_copy(update={"stop": ["two"]}).invoke("go") == STOPPED
    assert llm.model_copy(update={"max_new_tokens": 1}).invoke("go") == "one"
    other = Ensemble(members=[ScriptedMember("a", "another")])
    assert AdaFuseLLM.from_ensemble(other, cache=cache).invoke("go") == "another"


def test_a_wrong_option_is_refused_though_the_answer_is_cached():
    llm, _ = scripted(cache=InMemoryCache())
    llm.invoke("go")
    with pytest.raises(core.ConfigError):
        llm.invoke("go", max_token=1)


@pytest.mark.parametrize(
    "change",
    [
        {"members": ["a", {"model": "b", "weight": 2.0}]},
        {"members": ["a", {"model": "b", "revision": "main"}]},
        {"members": ["a", {"model": "b", "dtype": "float32"}]},
        {"members": ["a", {"model": "b", "model_kwargs": {"token": "hf_other"}}]},
        {"members": ["b", "a"]},
        {"tau": 0.1},
        {"beams": 1},
        {"branches": 1},
        {"max_word_tokens": 5},
        {"strategy": "single"},
        {"temperature": 0.5},
        {"seed": 1},
        {"max_tokens": 5},
        {"stop": ["x"]},
        {"system": "be kind"},
        {"prompt_format": "raw"},
    ],
)
def test_identifying_params_differ_if_answers_may_differ(change):
    base = {"members": ["a", {"model": "b", "model_kwargs": {"token": "hf_one"}}]}
    assert AdaFuseLLM(**base).asdict() == AdaFuseLLM(**base).asdict()
    assert AdaFuseLLM(**base).asdict() != AdaFuseLLM(**{**base, **change}).asdict()


# --- cancelling, threads, event loops ---


def endless(*, steps):
    """An LLM that writes one word per permitted step and then waits, and its first member."""
    return conftest.endless(AdaFuseLLM, steps=steps)


def test_closing_a_stream_ends_the_generation():
    llm, member = endless(steps=3)
    stream = llm.stream("go")
    next(stream)
    assert [len(other.running) for other in crew(llm)] == [1, 1]
    drafted = member.drafts
    stream.close()
    assert not any(other.running for other in crew(llm))
    assert member.drafts == drafted


def test_closing_a_stream_frees_the_memory_of_models(pair):
    llm = AdaFuseLLM(**pair)
    stream = llm.stream("The quick")
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


async def test_cancelling_reaches_into_the_step_that_is_running():
    llm, member = scripted(delay=30.0)
    llm.max_async_requests = 1
    tasks = [asyncio.create_task(llm.ainvoke("go")) for _ in range(3)]  # one runs, two wait for the thread
    await until(lambda: member.prompts)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len(member.prompts) == 1
    member.delay = llm._get_ensemble().members[1].delay = 0.0
    assert await asyncio.wait_for(llm.ainvoke("go"), LONG) == TEXT


async def test_a_timeout_ends_the_generation():
    llm, member = endless(steps=1)

    async def run_out_of_time():
        async with asyncio.timeout(None) as limit:
            async for _ in llm.astream("go"):
                limit.reschedule(asyncio.get_running_loop().time())

    with pytest.raises(TimeoutError):
        await run_out_of_time()
    await stopped(*crew(llm))
    assert member.drafts == 1


async def test_the_event_loop_stays_free_while_members_work():
    llm, member = scripted("one two three", steps=0)
    task = asyncio.create_task(llm.ainvoke("go"))
    await until(lambda: member.running)
    for _ in range(3):  # a blocked loop could not permit the steps
        for other in crew(llm):
            other.let(1)
        await asyncio.sleep(0)
    assert await task == "one two three"


async def test_the_default_executor_of_the_loop_is_not_used():
    class Forbidden(ThreadPoolExecutor):
        def submit(self, *_, **__):
            raise AssertionError("the default executor was used")

    asyncio.get_running_loop().set_default_executor(Forbidden(1))
    llm, _ = scripted(delay=0.001)
    assert await llm.ainvoke("go") == TEXT
    assert "".join(await collected(llm.astream("go"))) == TEXT
    assert await asyncio.gather(*(llm.ainvoke("go") for _ in range(12))) == [TEXT] * 12


async def test_an_error_in_mid_stream_surfaces_at_once():
    llm, _ = scripted(fail_after=2)
    heard = Heard()
    seen = []
    with pytest.raises(core.MemberError, match="'left': scripted failure"):
        seen.extend(llm.stream("go", {"callbacks": [heard]}))
    with pytest.raises(core.MemberError, match="scripted failure"):
        [seen.append(text) async for text in llm.astream("go")]
    with pytest.raises(core.MemberError, match="scripted failure"):
        llm.invoke("go")
    with pytest.raises(core.MemberError, match="scripted failure"):
        await llm.ainvoke("go")
    assert seen == ["one", " two."] * 2
    await stopped(*crew(llm))
    assert [other.drafts for other in crew(llm)] == [3 * 4, 2 * 4]  # of the failed call and of the next call
    assert [type(error) for error in heard.errors] == [core.MemberError]


def test_interleaved_streams_do_not_disturb_each_other(pair):
    llm, prompts = AdaFuseLLM(**pair), ["The quick", "Grüße aus"]
    alone = [llm.invoke(prompt) for prompt in prompts]
    texts = ["", ""]
    streams = {index: llm.stream(prompt) for index, prompt in enumerate(prompts)}
    while streams:
        for index in list(streams):
            piece = next(streams[index], None)
            if piece is None:
                del streams[index]
            else:
                texts[index] += piece
    assert texts == alone


def test_calls_from_eight_threads_answer_like_single_calls(pair):
    llm = AdaFuseLLM(**{**pair, "max_tokens": 4})
    prompts = [f"The {number} quick" for number in range(8)]
    alone = [llm.invoke(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(llm.invoke, prompts)) == alone
    assert llm.batch(prompts) == alone


async def test_gradient_mode_of_the_consumer_is_left_alone(pair):
    llm = AdaFuseLLM(**pair)
    for _ in llm.stream("The quick"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    async for _ in llm.astream("The quick"):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()

    def flags():
        yield torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert await collected(llm._running_calls.on_thread(flags, Cancellation(), 1)) == [(True, False)]


async def test_async_handlers_receive_tokens():
    class Async(AsyncCallbackHandler):
        text = ""

        async def on_llm_new_token(self, token, **_):
            self.text += token

    llm, _ = scripted()
    handler = Async()
    await llm.ainvoke("go", {"callbacks": [handler]})
    assert handler.text == TEXT


# --- counting ---


def test_token_counts_are_the_largest_of_the_members(tiny_models):
    members = [str(tiny_models[name]) for name in ("bytes", "characters")]
    llm, text = AdaFuseLLM(members=members), "The quick brown fox"
    counts = Ensemble({"members": members}).count_text_tokens(text)
    assert counts["characters"] == len(text) > counts["bytes"]
    assert llm.get_num_tokens(text) == len(text)
    assert len(llm.get_token_ids(text)) == len(text)
    assert llm.get_num_tokens("") == 0


def test_messages_are_counted_with_the_template():
    llm, member = scripted()
    messages = [SystemMessage("s t"), HumanMessage("hi")]
    llm.invoke(messages)
    assert llm.get_num_tokens_from_messages(messages) == member.count_tokens(member.prompts[0])
    with pytest.raises(core.PromptError, match="tools"):
        llm.get_num_tokens_from_messages(messages, tools=[{"type": "function"}])


def test_a_custom_tokenizer_counts_instead():
    llm, _ = scripted(custom_get_token_ids=lambda text: [ord(character) for character in text])
    assert llm.get_num_tokens("four") == 4
    assert llm.get_token_ids("ab") == [97, 98]
    assert llm.get_num_tokens_from_messages([HumanMessage("ab")]) == len("Human: ab")


# --- errors ---


async def test_an_overlong_prompt_can_be_caught_by_either_class():
    llm, _ = scripted(context_window=4)
    for kind in (core.ContextOverflowError, langchain.ContextOverflowError):
        with pytest.raises(kind, match=r"'left'.*22 tokens.*4"):
            llm.invoke("far " * 21)
        with pytest.raises(kind, match="Hint"):
            await llm.ainvoke("far " * 21)
        with pytest.raises(kind):
            list(llm.stream("far " * 21))
    with pytest.raises(core.ContextOverflowError) as caught:
        llm.invoke("far " * 21)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_missing_model_can_be_caught_by_either_class(tmp_path):
    llm = AdaFuseLLM(members=[str(tmp_path / "nowhere")])
    for kind in (core.ModelNotFoundError, langchain.ModelNotFoundError):
        with pytest.raises(kind, match="nowhere"):
            llm.invoke("go")


def test_fallbacks_and_retries_work():
    failing, _ = scripted(fail_after=0)
    fine, _ = scripted("fine")
    assert failing.with_fallbacks([fine]).invoke("go") == "fine"
    assert fine.with_retry().invoke("go") == "fine"


# --- sharing and saving ---


def test_copies_share_models_and_give_the_same_text(pair):
    llm = AdaFuseLLM(**pair)
    text, before = llm.invoke("The quick"), registry.loaded()
    backends = [member.backend for member in llm._get_ensemble().members]
    twins = [
        copy.copy(llm),
        copy.deepcopy(llm),
        llm.model_copy(update={"max_new_tokens": 12}),
        pickle.loads(pickle.dumps(llm)),
        AdaFuseLLM(**pair),
    ]
    for twin in twins:
        assert twin.invoke("The quick") == text
        assert [member.backend for member in twin._get_ensemble().members] == backends
    tuned = llm.configurable_fields(tau=ConfigurableField(id="tau"), max_new_tokens=ConfigurableField(id="budget"))
    short = tuned.with_config(configurable={"budget": 3, "tau": 0.0}).invoke("The quick")
    assert short == AdaFuseLLM(**{**pair, "max_tokens": 3, "tau": 0.0}).invoke("The quick")
    assert llm.bind(max_tokens=3).invoke("The quick") == llm.invoke("The quick", max_tokens=3)
    assert registry.loaded() == before
    assert len(pickle.dumps(llm)) < 20_000


def test_an_llm_on_an_ensemble_of_a_config_can_be_pickled_and_shares_its_models(pair):
    ensemble = Ensemble({"members": pair["members"]})
    llm = AdaFuseLLM.from_ensemble(ensemble, tau=0.0, max_tokens=4)
    text = llm.invoke("The quick")
    twin = pickle.loads(pickle.dumps(llm))
    assert twin.invoke("The quick") == text
    assert twin.asdict() == llm.asdict()
    for other in (llm, twin):
        backends = [member.backend for member in other._get_ensemble().members]
        assert backends == [member.backend for member in ensemble.members]


def test_models_in_use_stay_when_another_ensemble_closes(tmp_path):
    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level())
    llm = AdaFuseLLM(members=[path], max_tokens=2)
    llm.invoke("The")
    before = registry.loaded()
    other = Ensemble.from_pretrained(path)
    other.close()
    assert registry.loaded() == before


def test_configurable_fields_reach_ready_made_members():
    llm, member = scripted(strategy="adafuse")
    tuned = llm.configurable_fields(tau=ConfigurableField(id="tau"), stop=ConfigurableField(id="stop"))
    assert tuned.invoke("go", {"configurable": {"stop": ["two"]}}) == STOPPED
    before = member.drafts
    assert tuned.invoke("go", {"configurable": {"tau": 0.0}}) == TEXT
    assert member.drafts - before == 3  # a confident member writes three words per round


def test_deep_copies_share_ready_made_members():
    llm, member = scripted()
    llm.invoke("go")
    assert copy.deepcopy(llm).invoke("go") == TEXT
    assert len(member.prompts) == 2


def test_changed_fields_take_effect():
    llm, member = scripted(strategy="adafuse")
    llm.invoke("go")
    before = member.drafts
    llm.tau = 0.0
    llm.invoke("go")
    assert member.drafts - before == 3


@pytest.mark.parametrize("ending", [".json", ".yaml"])
def test_it_is_saved_as_plain_values(tmp_path, ending):
    llm = AdaFuseLLM(members=["a", {"model": "b", "end_tokens": ["x"], "model_kwargs": {"token": "hf_secret"}}])
    path = tmp_path / f"llm{ending}"
    llm.save(path)
    text = path.read_text(encoding="utf-8")
    values = json.loads(text) if ending == ".json" else yaml.safe_load(text)
    assert values == llm.asdict()
    assert values["_type"] == "adafuse"
    assert [member["name"] for member in values["members"]] == ["a", "b"]
    assert "hf_secret" not in text


def test_nothing_shown_contains_a_secret():
    members = [{"model": "b", "model_kwargs": {"token": "hf_secret"}}]
    llm = AdaFuseLLM(members=members)
    shown = [repr(llm), str(llm), str(llm.asdict()), llm.get_name(), str(llm._serialized), str(llm._get_ls_params())]
    assert not any("hf_secret" in text for text in shown)
    assert "members=['b']" in repr(llm)
    with pytest.raises(ValidationError) as caught:
        AdaFuseLLM(members=members, tau=2.0)
    assert "hf_secret" not in str(caught.value)


def test_traces_contain_provider_model_and_settings():
    llm, _ = scripted(max_tokens=9, stop=["x"])
    assert llm._get_ls_params(temperature=0.5) == {
        "ls_provider": "adafuse",
        "ls_model_type": "llm",
        "ls_model_name": "left+right",
        "ls_temperature": 0.5,
        "ls_max_tokens": 9,
        "ls_stop": ["x"],
    }
    assert llm._get_ls_params(stop=["y"], max_tokens=3)["ls_max_tokens"] == 3
    assert "adafuse" in llm.metadata["lc_versions"]
    assert "langchain-core" in llm.metadata["lc_versions"]


# --- loading ---


def test_a_strict_template_gets_the_system_message_and_no_special_token_is_shown(tmp_path):
    path = tiny.save_tiny(tmp_path / "strict", tiny.metaspace(), seed=3)
    llm = AdaFuseLLM(members=[str(path)], system="be kind", max_tokens=8)
    text = llm.invoke("Hello <s> there")
    assert not any(token in text for token in ("<s>", "</s>", "[INST]"))


# --- the small models ---


async def test_without_arguments_the_small_models_answer_on_every_path():
    llm = AdaFuseLLM()
    answer = llm.invoke(QUESTION)
    assert "Paris" in answer
    assert "".join(llm.stream(QUESTION)) == answer
    assert await llm.ainvoke(QUESTION) == answer
    assert "".join(await collected(llm.astream(QUESTION))) == answer
    assert llm.batch([QUESTION, "Hello!"]) == [answer, llm.invoke("Hello!")]


def test_the_small_models_end_their_answers_and_are_counted():
    llm = AdaFuseLLM(trace="full")
    info = llm.generate([QUESTION]).generations[0][0].generation_info
    assert info["finish_reason"] == "stop"
    message = {"role": "user", "content": QUESTION}
    assert info["usage"]["prompt_tokens"] == Ensemble().count_tokens([message])
    names = set(Ensemble().names)
    assert all(set(played["margins"]) == names for played in info["adafuse"]["rounds"])
    assert {name for played in info["adafuse"]["rounds"] for name in played["proposers"]} <= names


def test_the_small_models_show_no_special_tokens():
    text = AdaFuseLLM().invoke("Hello!") + AdaFuseLLM(prompt_format="raw", max_tokens=24).invoke("Hello!")
    for member in Ensemble().members:
        for token in member.prompt_reader.tokenizer.all_special_tokens:
            assert token not in text


def test_stop_and_budget_hold_for_the_small_models():
    llm = AdaFuseLLM()
    answer = llm.invoke(QUESTION)
    assert llm.invoke(QUESTION, stop=["Paris"]) == answer[: answer.index("Paris")]
    short = llm.generate([QUESTION], max_tokens=3).generations[0][0]
    assert answer.startswith(short.text)
    assert short.generation_info["finish_reason"] == "length"
    assert short.generation_info["usage"]["completion_tokens"]["aspen"] <= 3


def test_one_small_model_alone_is_an_option():
    alone = AdaFuseLLM(strategy="single", member="birch")
    info = alone.generate([QUESTION], max_tokens=8).generations[0][0].generation_info
    assert list(info["usage"]["prompt_tokens"]) == ["birch"]
