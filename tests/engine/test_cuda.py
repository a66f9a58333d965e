"""Tests that need a GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

from adafuse_core import Ensemble, small_models
from adafuse_core.engine.forward import Model
from adafuse_core.engine.store_choice import choose_store
from tests.engine.test_fixed_passes import TREES, calls
from tests.engine.test_stores import build, check_distributions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def on_gpu(family, dtype=torch.float32):
    return Model(build(family, dtype).module.to("cuda"))


EXPERTS = (
    "mixtral",
    "gpt_oss",
)  # in other dtypes than bfloat16, experts are selected by values that are read to the CPU


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_recorded_in_bfloat16_only(family):
    assert "with CUDA graphs" in str(choose_store(on_gpu(family, torch.bfloat16)))
    assert "no CUDA graphs: RuntimeError" in str(choose_store(on_gpu(family)))
    assert "with CUDA graphs" in str(choose_store(on_gpu("llama")))


@pytest.mark.parametrize("family", [family for family in TREES if family not in EXPERTS])
def test_graphs_give_the_distributions_of_fresh_passes(family):
    reference, model = on_gpu(family), on_gpu(family)
    choice = choose_store(model, chunk=16)
    assert str(choice) == "tree with CUDA graphs (it reproduces fresh passes)"
    runs, before = calls(model), model.forwards
    check_distributions(choice.store, reference, family, rounds=8)
    assert len(runs) < (model.forwards - before) * 0.75


@pytest.mark.parametrize("graphs", [True, False])
def test_answers_are_those_of_the_cpu(graphs):
    questions = ["What is the capital of Peru?", "How do you say bread in French?", "Who are you?"]
    names = [str(small_models.path(name)) for name in small_models.NAMES]
    members = [{"model": name, "dtype": "float64", "device": "cpu"} for name in names]
    with Ensemble.from_pretrained(*members) as ensemble:
        expected = [answer.text for answer in ensemble.batch(questions)]
    members = [{"model": name, "dtype": "float64", "device": "cuda", "cuda_graphs": graphs} for name in names]
    with Ensemble.from_pretrained(*members) as ensemble:
        assert [answer.text for answer in ensemble.batch(questions)] == expected
        assert [ensemble.generate(question).text for question in questions] == expected
        assert [member.backend.tokens_held() for member in ensemble.members] == [0, 0]
