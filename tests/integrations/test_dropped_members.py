"""Both adapters, the server's metrics and the command line say which members were left out of an answer."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from adafuse_core import Ensemble, MemberError, ScriptedMember
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.langchain import AdaFuseLLM as LangChainLLM
from adafuse_integrations.langchain import ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM as LlamaIndexLLM
from adafuse_integrations.server.answers import Part, answer_details


@pytest.fixture
def ensemble():
    members = [
        ScriptedMember("a", "one two three", margin=0.1),
        ScriptedMember("b", "one two three", margin=0.1, fail_after=1),
    ]
    return Ensemble(members=members, strategy="adafuse", on_member_failure="drop")


def names(dropped):
    assert all("scripted failure" in each["error"] for each in dropped)
    return [each["member"] for each in dropped]


def test_langchain_has_them_in_its_metadata(ensemble):
    message = ChatAdaFuse.from_ensemble(ensemble).invoke("go")
    assert message.content == "one two three"
    assert names(message.response_metadata["adafuse"]["dropped_members"]) == ["b"]
    result = LangChainLLM.from_ensemble(ensemble).generate(["go"])
    assert names(result.generations[0][0].generation_info["adafuse"]["dropped_members"]) == ["b"]
    chunks = list(ChatAdaFuse.from_ensemble(ensemble).stream("go"))
    assert [chunk for chunk in chunks if "dropped_members" in chunk.response_metadata.get("adafuse", {})]


def test_llama_index_has_them_in_raw(ensemble):
    response = LlamaIndexLLM.from_ensemble(ensemble).complete("go")
    assert response.text == "one two three"
    assert names(response.raw["dropped_members"]) == ["b"]


@pytest.mark.parametrize("kind", [ChatAdaFuse, LangChainLLM, LlamaIndexLLM])
def test_the_option_is_passed_through(kind):
    llm = kind(members=["small:aspen", "small:birch"], on_member_failure="drop")
    assert llm._get_ensemble().config.on_member_failure == "drop"


def test_answers_without_failures_do_not_mention_members_that_were_left_out():
    ensemble = Ensemble(members=[ScriptedMember("a", "one")])
    assert "dropped_members" not in ChatAdaFuse.from_ensemble(ensemble).invoke("go").response_metadata["adafuse"]


def test_the_server_and_the_command_line_have_them(ensemble):
    part, events = Part(), list(ensemble.stream("go"))
    for event in events:
        part.add(event)
    assert names(answer_details(part, with_rounds=False)["dropped_members"]) == ["b"]
    shown = io.StringIO()
    Painter(Console(file=shown, width=200), ["a", "b"]).stream(iter(events))
    assert "b failed and was left out" in shown.getvalue()


def test_errors_are_raised_by_default(ensemble):
    failing = Ensemble(members=ensemble.members, strategy="adafuse")
    for ask in (ChatAdaFuse.from_ensemble(failing).invoke, LlamaIndexLLM.from_ensemble(failing).complete):
        with pytest.raises(MemberError, match="scripted failure"):
            ask("go")
