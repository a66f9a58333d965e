"""The common base of the LLM and the chat model: member selection, retries, access tokens."""

from __future__ import annotations

import pytest
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from adafuse_core import errors as core
from adafuse_core.ensemble import Ensemble
from adafuse_core.members.scripted import ScriptedMember
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse
from tests.integrations.langchain.conftest import text_of

TEXT = "one two. three"


@pytest.fixture(params=[AdaFuseLLM, ChatAdaFuse])
def kind(request):
    return request.param


def of(kind, *members, **options):
    return kind.from_ensemble(Ensemble(members=members), **options)


# --- member selection ---


def test_without_members_model_names_the_members_to_load(kind):
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


def test_members_can_be_selected_by_the_name_of_their_model(kind):
    assert kind(model="small:aspen", members=["small:aspen", "small:birch"]).model_name == "aspen"
    with pytest.raises(ValidationError, match="no member 'oak'"):
        kind(model="oak", members=["small:aspen"])


def test_api_key_is_the_token_that_loads_models(kind):
    own = {"model": "c", "model_kwargs": {"token": "hf_own"}}
    members = kind(members=["a", own, "small:aspen"], api_key="hf_secret")._config().members
    assert [member.model_kwargs.get("token") for member in members] == ["hf_secret", "hf_own", None]
    with pytest.raises(ValidationError, match="api_key"):
        of(kind, ScriptedMember("a"), api_key="hf_secret")


# --- retries ---


class Flaky(ScriptedMember):
    """A member that fails in its first rounds."""

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


def test_a_call_that_fails_before_the_first_word_is_retried(kind):
    assert text_of(of(kind, Flaky("a", TEXT), max_retries=2).invoke("go")) == TEXT
    for retries in (0, 1):
        with pytest.raises(core.MemberError, match="no memory left"):
            of(kind, Flaky("a", TEXT), max_retries=retries).invoke("go")


def test_a_call_that_fails_later_is_not_retried(kind):
    member = ScriptedMember("a", TEXT, margin=0.0, fail_after=2)
    llm, seen = of(kind, member, max_retries=5), []
    with pytest.raises(core.MemberError, match="scripted failure"):
        seen.extend(llm.stream("go"))
    assert "".join(map(text_of, seen)) == "one two."
    assert len(member.prompts) == 1


def test_without_trace_an_answer_has_no_rounds(kind):
    def rounds(**options):
        (answer,) = kind(max_tokens=4, **options).generate_prompt([StringPromptValue(text="Hello")]).generations[0]
        assert answer.text
        assert answer.generation_info["finish_reason"] == "length"
        return answer.generation_info["adafuse"].get("rounds"), answer.generation_info["adafuse"].get("words")

    assert rounds(trace=False) == (None, None)
    assert rounds()[0] is None
    assert all(rounds(trace=level)[0] for level in ("full", True))
