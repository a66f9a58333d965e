"""What the LLM and the chat model have in common: the members that answer, deadlines, retries, tokens for models."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core import exceptions as langchain
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from adafuse_core import errors as core
from adafuse_core.ensemble import Ensemble
from adafuse_core.members.scripted import ScriptedMember
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse, ModelTimeoutError
from tests.integrations.langchain.conftest import crew, endless, text_of
from tests.integrations.stepped import Stepped, stopped, until

TEXT = "one two. three"


@pytest.fixture(params=[AdaFuseLLM, ChatAdaFuse])
def kind(request):
    return request.param


def of(kind, *members, **options):
    return kind.from_ensemble(Ensemble(members=members), **options)


# --- the members that answer ---


def test_a_model_names_the_members_to_load_where_there_are_none(kind):
    assert [member.model for member in kind(model="small:birch").members] == ["small:birch"]
    assert kind(model="some/model+small:birch").model_name == "model+birch"
    assert kind().model_name == "aspen+birch"


def test_a_model_chooses_among_the_members(kind):
    members = [ScriptedMember("a", "left"), ScriptedMember("b", "right"), ScriptedMember("c", "right")]
    llm = of(kind, *members)
    assert text_of(llm.invoke("go")) == "right"
    assert text_of(llm.invoke("go", model="a")) == "left"
    assert "".join(map(text_of, llm.stream("go", model="a"))) == "left"
    assert llm.bind(model="b+a").kwargs == {"model": "b+a"}
    assert of(kind, *members, model="b+a").model_name == "b+a"
    with pytest.raises(core.ConfigError, match=r"no member 'd'.*\n.*a, b, c"):
        llm.invoke("go", model="d")
    tuned = llm.configurable_fields(model=ConfigurableField(id="model"))
    assert text_of(tuned.with_config(configurable={"model": "a"}).invoke("go")) == "left"


def test_members_go_by_the_name_of_their_model_too(kind):
    assert kind(model="small:aspen", members=["small:aspen", "small:birch"]).model_name == "aspen"
    with pytest.raises(ValidationError, match="no member 'oak'"):
        kind(model="oak", members=["small:aspen"])


def test_a_key_is_the_token_that_models_are_loaded_with(kind):
    own = {"model": "c", "model_kwargs": {"token": "hf_own"}}
    members = kind(members=["a", own, "small:aspen"], api_key="hf_secret")._config().members
    assert [member.model_kwargs.get("token") for member in members] == ["hf_secret", "hf_own", None]
    with pytest.raises(ValidationError, match="api_key"):
        of(kind, ScriptedMember("a"), api_key="hf_secret")


# --- deadlines ---


class Timers:
    """In place of the timers of deadlines: a test says when time is up.

    Attributes:
        intervals: Seconds that the timers were to run.
    """

    def __init__(self):
        self.intervals, self._expire = [], []

    def __call__(self, interval, expire):
        self.intervals.append(interval)
        self._expire.append(expire)
        return self

    def start(self):
        """Nothing is to be done."""

    def cancel(self):
        """Nothing is to be done."""

    def expire(self):
        """The time of all calls is up."""
        while self._expire:
            self._expire.pop()()


@pytest.fixture
def timers(monkeypatch):
    timers = Timers()
    monkeypatch.setattr("adafuse_integrations.common.deadline.Timer", timers)
    return timers


@pytest.mark.parametrize("of_call", [True, False])
async def test_a_timeout_ends_the_generation_with_an_error_of_its_own(kind, timers, of_call):
    class Late(Stepped):
        """Time is up while it makes its third step."""

        def _count_draft(self):
            super()._count_draft()
            if self.drafts % 3 == 0:
                timers.expire()

    member = Late("a", "word ", margin=0.0, ends_answer=False)
    llm = of(kind, member, max_tokens=None)
    llm = llm if of_call else llm.model_copy(update={"timeout": 60})
    options = {"timeout": 60} if of_call else {}
    for error in (langchain.ModelTimeoutError, core.DeadlineError, core.CancelledError):
        with pytest.raises(error, match=r"timeout=60 seconds"):
            llm.invoke("go", **options)
    with pytest.raises(ModelTimeoutError):
        await llm.ainvoke("go", **options)
    seen = []
    with pytest.raises(ModelTimeoutError):
        seen.extend(llm.stream("go", **options))
    with pytest.raises(ModelTimeoutError):
        [seen.append(chunk) async for chunk in llm.astream("go", **options)]
    assert [text_of(chunk) for chunk in seen] == ["word ", "word "] * 2
    await stopped(member)
    assert member.drafts == 3 * 6


def test_a_timeout_that_is_not_reached_changes_nothing(kind):
    llm = of(kind, ScriptedMember("a", TEXT), timeout=60)
    assert text_of(llm.invoke("go")) == TEXT
    assert text_of(llm.invoke("go", timeout=None)) == TEXT
    for wrong in (-1, 0, "soon", True):
        with pytest.raises(core.ConfigError, match="timeout"):
            llm.invoke("go", timeout=wrong)


async def test_waiting_for_a_thread_counts_as_time(kind, timers, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("adafuse_integrations.common.deadline.monotonic", lambda: now[0])
    llm, member = endless(kind, steps=0)
    calls = [asyncio.create_task(llm.ainvoke("go", timeout=60)) for _ in range(6)]  # there are four threads
    await until(lambda: len(member.running) == 4)
    now[0] += 50.0
    for others in (4, 2):
        await until(lambda others=others: len(timers._expire) == others)
        timers.expire()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ModelTimeoutError] * 6
    assert timers.intervals == [60.0] * 4 + [10.0] * 2


async def test_cancelling_is_no_timeout(kind):
    llm, member = endless(kind, steps=2)
    task = asyncio.create_task(llm.ainvoke("go", timeout=60))
    await until(lambda: member.drafts == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stopped(*crew(llm))
    assert member.drafts == 2


# --- retries ---


class Flaky(ScriptedMember):
    """A member that fails at the first rounds of its life."""

    failures = 2

    def open(self, *arguments, **options):
        prefix = super().open(*arguments, **options)
        draft = prefix.draft

        def failing(*plan):
            if self.failures:
                self.failures -= 1
                raise core.MemberError("no memory left", member=self.name)
            return draft(*plan)

        prefix.draft = failing
        return prefix


def test_a_call_that_fails_before_the_first_word_is_tried_again(kind):
    assert text_of(of(kind, Flaky("a", TEXT), max_retries=2).invoke("go")) == TEXT
    for retries in (0, 1):
        with pytest.raises(core.MemberError, match="no memory left"):
            of(kind, Flaky("a", TEXT), max_retries=retries).invoke("go")


def test_a_call_that_fails_later_is_not_tried_again(kind):
    member = ScriptedMember("a", TEXT, margin=0.0, fail_after=2)
    llm, seen = of(kind, member, max_retries=5), []
    with pytest.raises(core.MemberError, match="scripted failure"):
        seen.extend(llm.stream("go"))
    assert "".join(map(text_of, seen)) == "one two."
    assert len(member.prompts) == 1


def test_without_trace_an_answer_tells_of_no_rounds(kind):
    def rounds(**options):
        (answer,) = kind(max_tokens=4, **options).generate_prompt([StringPromptValue(text="Hello")]).generations[0]
        assert answer.text
        assert answer.generation_info["finish_reason"] == "length"
        return answer.generation_info["adafuse"].get("rounds"), answer.generation_info["adafuse"].get("words")

    assert rounds(trace=False) == (None, None)
    assert rounds()[0] is None
    assert all(rounds(trace=level)[0] for level in ("full", True))
