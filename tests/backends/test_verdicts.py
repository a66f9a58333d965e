"""Verdicts of self-tests are kept on disk, and used only where nothing that matters has changed."""

from __future__ import annotations

import json

import pytest
import torch

from adafuse_core import Ensemble, disk_cache
from adafuse_core.backends import huggingface, verdicts
from adafuse_core.backends.verdicts import facts_of, keep_verdict, read_verdict
from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.store_choice import Options
from adafuse_core.engine.verdict import Verdict
from adafuse_core.errors import ConfigError, NonFiniteLogitsError
from tests import tiny
from tests.engine.test_stores import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny(tmp_path_factory.mktemp("verdicts") / "own", tiny.byte_level())


@pytest.fixture(autouse=True)
def _empty():
    disk_cache.clear("selftest")


@pytest.fixture
def tests_run(monkeypatch):
    """The models that were tested, rather than their verdicts read."""
    tested = []
    examine = huggingface.examine
    monkeypatch.setattr(huggingface, "examine", lambda model, options: tested.append(model) or examine(model, options))
    return tested


def load(folder, **options):
    """Text and cache description of a member that is loaded and freed again."""
    with Ensemble.from_pretrained({"model": str(folder), **options}, strategy="single") as ensemble:
        passes = ensemble.members[0].backend.model.forwards
        text = ensemble.generate("The quick", max_new_tokens=6).text
        return text, ensemble.describe()["members"][0]["cache"], passes


def test_the_second_start_reads_the_verdict_and_says_so(folder, tests_run):
    text, cache, _ = load(folder)
    again, cached, passes = load(folder)
    assert len(tests_run) == 1
    assert passes == 1  # the logits are checked at every start
    assert again == text
    assert "verdict read from disk" in cached
    assert "verdict read from disk" not in cache


def test_every_start_is_tested_on_request(folder, tests_run):
    for _ in range(2):
        assert "verdict read" not in load(folder, selftest="always")[1]
    assert len(tests_run) == 2


def test_the_test_cannot_be_left_out():
    with pytest.raises(ConfigError, match="selftest"):
        Ensemble({"members": [{"model": "small:aspen", "selftest": "never"}]})


def test_weights_that_became_nan_are_found_in_spite_of_a_verdict(folder, monkeypatch, tests_run):
    load(folder)
    facts = verdicts.facts_of
    monkeypatch.setattr(huggingface, "facts_of", lambda *given: facts(build("llama"), Options()))
    keep_verdict(facts(build("llama"), Options()), Verdict(kind="tree"))
    load_module = huggingface._load_module

    def broken(*given):
        module, weights = load_module(*given)
        module = module.to(torch.float32)
        with torch.no_grad():
            module.get_input_embeddings().weight[:] = float("nan")
        return module, weights

    monkeypatch.setattr(huggingface, "_load_module", broken)
    with pytest.raises(NonFiniteLogitsError):
        load(folder, dtype="float32")
    assert len(tests_run) == 1


def changed(name):
    """Facts of a model that differs in one thing."""
    model, options = build("llama"), Options()
    if name == "weights":
        with torch.no_grad():
            next(model.module.parameters())[0, 0] += 1
    elif name == "dtype":
        model = build("llama", torch.bfloat16)
    elif name == "config":
        model.module.config.rope_parameters["rope_theta"] = 5e5
    elif name == "attention":
        model.module.set_attn_implementation("eager")
    elif name == "store":
        options = Options(kv_store="fork")
    elif name == "graphs":
        options = Options(cuda_graphs=False)
    elif name == "path":
        model.module.config._name_or_path = "/elsewhere"
    return facts_of(model, options)


@pytest.mark.parametrize("name", ["weights", "dtype", "config", "attention", "store", "graphs"])
def test_what_can_change_a_verdict_is_part_of_its_key(name):
    assert changed(name) != changed("nothing")


def test_the_place_of_a_model_is_no_part_of_the_key():
    assert changed("path") == changed("nothing")


@pytest.mark.parametrize("package", ["torch", "transformers", "adafuse"])
def test_another_version_of_a_package_is_another_key(package, monkeypatch):
    before = changed("nothing")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0" if name == package else before["versions"][name])
    assert changed("nothing") != before


def test_another_device_is_another_key(monkeypatch):
    before = changed("nothing")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert changed("nothing") != before


def test_a_verdict_comes_back_as_it_was():
    verdict = Verdict(
        kind="prefill", problems=("no tree: a", "no fork: b"), limits=", c", abilities=CacheAbilities(several_rows=True)
    )
    facts = changed("nothing")
    keep_verdict(facts, verdict)
    assert json.dumps(facts)
    assert read_verdict(facts)[0] == verdict


def test_a_verdict_of_another_version_is_not_used():
    facts = changed("nothing")
    for value in ({}, {"tested": "today", "verdict": {"kind": "tree", "speed": 3}}, {"tested": "today", "verdict": 3}):
        disk_cache.write_json("selftest", facts, value)
        assert read_verdict(facts) is None


def test_a_verdict_for_lack_of_memory_is_not_kept():
    facts = changed("nothing")
    keep_verdict(facts, Verdict(kind="fork", problems=("no tree: OutOfMemoryError: 3 GiB",)))
    assert read_verdict(facts) is None
