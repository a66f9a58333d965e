"""Serializing, pickling and copying: the config is copied, and the models are shared."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool

from adafuse_core.members import registry
from adafuse_integrations.llama_index import AdaFuseLLM, react_grammar
from tests.integrations.llama_index.conftest import scripted


@pytest.fixture
def llm(pair):
    members = [pair[0], {"model": pair[1], "weight": 2.0}]
    return AdaFuseLLM(members=members, max_new_tokens=6, stop=["###"], seed=1, system_prompt="S", on_word=lambda _: 0)


def test_39_dict_and_json_round_trip(llm):
    for twin in (AdaFuseLLM.from_dict(llm.to_dict()), AdaFuseLLM.from_json(llm.to_json())):
        assert twin.to_json() == llm.to_json()
        assert twin.ensemble.config == llm.ensemble.config
        assert twin.system_prompt == "S"
    assert "on_word" not in llm.to_dict()
    assert json.loads(llm.to_json())["class_name"] == "AdaFuseLLM"


def test_39_a_grammar_round_trips():
    llm = AdaFuseLLM(grammar=react_grammar([FunctionTool.from_defaults(lambda: None, name="a", description="b")]))
    for twin in (AdaFuseLLM.from_json(llm.to_json()), pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):
        assert twin.grammar == llm.grammar


def test_39_default_options_round_trip():
    assert AdaFuseLLM.from_dict(AdaFuseLLM().to_dict()).to_dict() == AdaFuseLLM().to_dict()


def test_39_pickles_are_small_and_load_no_second_model(llm):
    text = llm.complete("The quick").text
    before = registry.loaded()
    blob = pickle.dumps(llm)
    assert len(blob) < 10_000
    twin = pickle.loads(blob)
    assert twin.complete("The quick").text == text
    assert twin.ensemble.members[0].backend is llm.ensemble.members[0].backend
    assert registry.loaded() == before


def test_39_pickling_does_not_change_the_llm_and_drops_only_callbacks(llm, caplog):
    words = []
    llm.on_word = lambda word: words.append(word)
    assert pickle.loads(pickle.dumps(llm)).on_word is None
    assert [record.message for record in caplog.records] == ["Removing unpickleable attribute on_word"]
    llm.complete("The quick")
    assert words


@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, lambda llm: llm.model_copy(), lambda llm: llm.model_copy(deep=True)],
    ids=["copy", "deepcopy", "model_copy", "model_copy deep"],
)
def test_39_copies_share_models_and_callbacks(llm, make):
    llm.complete("The quick")
    before = registry.loaded()
    twin = make(llm)
    assert twin.complete("The quick").text == llm.complete("The quick").text
    assert twin.ensemble.members[0].backend is llm.ensemble.members[0].backend
    assert twin.on_word is llm.on_word
    assert registry.loaded() == before


def test_39_ingestion_workers_load_their_own_models():
    llm = AdaFuseLLM(max_new_tokens=8)
    pipeline = IngestionPipeline(transformations=[SummaryExtractor(llm=llm, summaries=["self"])], disable_cache=True)
    node = TextNode(
        text="Karsten Bridge was designed by Ida Marlow."
    )  # a single node, because each worker loads PyTorch
    (here,) = pipeline.run(nodes=[copy.deepcopy(node)])
    (there,) = pipeline.run(nodes=[copy.deepcopy(node)], num_workers=2)
    assert here.metadata["section_summary"]
    assert there.metadata == here.metadata


def test_a_changed_copy_does_not_change_the_original(llm):
    twin = llm.model_copy(update={"max_new_tokens": 2})
    assert twin.complete("The quick").raw["usage"]["completion_tokens"] == 2
    assert llm.complete("Grüße").raw["usage"]["completion_tokens"] == 6
    deep = copy.deepcopy(llm)
    deep.members.pop()
    assert len(llm.members) == 2


def test_copying_and_pickling_while_a_stream_runs_works(llm):
    stream = llm.stream_complete("The quick")
    next(stream)
    copy.deepcopy(llm)
    pickle.loads(pickle.dumps(llm))
    assert list(stream)[-1].raw["finish_reason"]


def test_ready_members_are_shared_by_copies_and_refuse_to_be_pickled():
    llm, _ = scripted("one")
    for twin in (copy.copy(llm), copy.deepcopy(llm)):
        assert twin.complete("go").text == "one"
        assert twin.ensemble is llm.ensemble
    with pytest.raises(TypeError, match="ready-made"):
        pickle.dumps(llm)
