"""A new kind of backend is one file and one row. Unsupported requests are refused, with member, option and hint."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adafuse_core import Ensemble, EnsembleConfig, Grammar
from adafuse_core.backends import BACKENDS, FILE_OPTIONS, RUN_OPTIONS, base, opener
from adafuse_core.errors import CancelledError, ConfigError, MemberError, NonFiniteLogitsError, TokenizerMismatchError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import registry
from adafuse_core.members.loader import load_member
from tests.backends import stub

TEXT = "The capital of Peru is Lima."
PROMPT = "The capital of Peru"
REST = " is Lima."
LOCAL = {"model": "small:birch", "dtype": "float64", "device": "cpu"}


@pytest.fixture(autouse=True)
def row(monkeypatch):
    monkeypatch.setitem(BACKENDS, "stub", "tests.backends.stub:Stub")


def checked(**options):
    """A member's config, checked as part of an ensemble's."""
    (member,) = EnsembleConfig(members=(MemberConfig(**options),)).members
    return member


def config(name="counts", **options):
    own = {"text": TEXT} | options.pop("backend_options", {})
    return checked(model="small:aspen", name=name, backend="stub", backend_options=own, **options)


def refusal(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.member == "counts"
    assert caught.value.hint
    return caught.value


# --- a stub in an ensemble ---


def test_a_new_backend_decodes_alone():
    with Ensemble(members=[config()], strategy="single") as ensemble:
        answer = ensemble.generate(PROMPT)
    assert (answer.text, answer.reason) == (REST, "stop")


def test_a_new_backend_answers_beside_a_local_member():
    with Ensemble(members=[LOCAL, config(weight=3.0)]) as ensemble:
        answers = ensemble.batch([PROMPT] * 4, max_new_tokens=12)
        local, other = ensemble.members
        assert (local.place, other.place) == ("local:cpu", "stub:1")
        assert type(other.backend) is stub.StubBackend
    assert {answer.text for answer in answers} == {REST}
    (first, *_) = answers[0].rounds
    assert [draft.member for draft in first.drafts] == ["birch", "counts"]
    assert {name for played in answers[0].rounds for name in played.winner.proposers} >= {"counts"}
    assert other.backend.closed


def test_members_of_different_places_run_at_the_same_time(monkeypatch):
    barrier, draft = threading.Barrier(2), stub.StubSession.draft  # fails unless both draft at once

    def draft_together(self, *arguments):
        barrier.wait(10)
        return draft(self, *arguments)

    monkeypatch.setattr(stub.StubSession, "draft", draft_together)
    members = [config(), config("others", backend_options={"place": "stub:2"})]
    with Ensemble(members=members, branches=1) as ensemble:
        assert ensemble.generate(PROMPT).text == REST


def test_request_on_a_new_backend_can_be_cancelled():
    cancel = threading.Event()
    with Ensemble(members=[config()]) as ensemble:
        stream = ensemble.stream(PROMPT, cancel=cancel)
        cancel.set()
        with pytest.raises(CancelledError, match="counts"):
            list(stream)


def test_shared_object_of_a_place_is_made_once_and_kept_with_the_loaded_models():
    members = [config(), config("same", backend_options={"text": "Lima."}), config("b", backend_options={"place": "2"})]
    with Ensemble(members=members) as ensemble:
        calls = [member.backend.calls for member in ensemble.members]
    assert calls[0] is calls[1] is registry.shared("stub:1", stub.Counter)
    assert calls[2] is not calls[0]


def test_local_members_of_one_device_share_turns():
    with Ensemble(members=[LOCAL, LOCAL | {"model": "small:aspen"}]) as ensemble:
        turns = [member.backend._batcher.turns for member in ensemble.members]
    assert turns[0] is turns[1]


def test_abilities_are_described():
    member = load_member(config(dtype="float16"))
    facts = member.describe()
    assert facts["place"] == member.abilities.place == "stub:1"
    assert (facts["device"], facts["dtype"], facts["top"]) == ("counts", "float16", 5)
    assert (facts["masks"], facts["full_distribution"], facts["context_window"]) == (False, False, 2048)
    local = load_member(MemberConfig(**LOCAL)).describe()
    assert (local["masks"], local["full_distribution"], local["top"]) == (True, True, None)
    assert (local["device"], local["place"]) == ("cpu", "local:cpu")


# --- unsupported requests are refused ---


def test_strategy_that_needs_more_than_a_backend_supports_is_refused_with_member_and_hint():
    with pytest.raises(ConfigError, match=r"strategy 'beam' reads the 9 likeliest tokens.*reports 5") as caught:
        Ensemble(members=[LOCAL, config()], branches=9).load()
    assert caught.value.member == "counts"
    assert "leave this member out" in caught.value.hint
    Ensemble(members=[LOCAL, config()], branches=5).load().close()


def test_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'clouds', expected one of 'local', .*'stub'"):
        checked(model="m", backend="clouds")


def test_an_unknown_option_is_refused_with_the_nearest_name():
    error = refusal(lambda: config(backend_options={"plaice": "x"}))
    assert "option of backend 'stub' 'plaice'" in error.message
    assert error.hint == "did you mean 'place'?"


def test_a_missing_or_wrong_option_is_refused():
    missing = refusal(lambda: checked(model="m", name="counts", backend="stub"))
    assert "missing" in missing.message
    assert "'text'" in missing.message
    assert "backend_options" in missing.hint
    with pytest.raises(ConfigError, match="member 'counts': got text='', expected some text"):
        config(backend_options={"text": ""})
    with pytest.raises(ConfigError, match="expected a mapping"):
        checked(model="m", backend_options="text")


def test_the_local_backend_says_where_its_options_are():
    error = refusal(lambda: checked(model="m", name="counts", backend_options={"kv_store": "tree"}))
    assert "MemberConfig(kv_store=...)" in error.hint
    error = refusal(lambda: checked(model="m", name="counts", backend_options={"x": 1}))
    assert error.hint == "known options: none"


VALUES = {
    "device": "cpu",
    "device_map": "auto",
    "attn_implementation": "eager",
    "quantization_config": {"quant_method": "bnb"},
    "adapter": "owner/adapter",
    "model_kwargs": {"low_cpu_mem_usage": True},
    "kv_store": "tree",
    "cuda_graphs": False,
    "max_kv_tokens": 100,
    "selftest": "always",
    "prefix_cache": False,
}


@pytest.mark.parametrize("name", RUN_OPTIONS)
def test_field_that_a_backend_does_not_honour_is_refused(name):
    if name in stub.Stub.honours:
        assert config(dtype="float16").dtype == "float16"
        return
    error = refusal(lambda: config(**{name: VALUES[name]}))
    assert error.message == f"backend 'stub' does not honour {name}={VALUES[name]!r}"
    assert name in error.hint


def test_file_options_are_honoured_by_every_backend():
    assert config(model_kwargs=dict.fromkeys(FILE_OPTIONS, "x"))


def test_run_options_are_fields_of_the_config():
    assert set(RUN_OPTIONS) < set(MemberConfig.__dataclass_fields__)


def test_options_are_part_of_the_load_key_and_of_a_pickled_config():
    here, there = config(), config(backend_options={"place": "stub:2"})
    assert here.load_key != there.load_key
    assert pickle.loads(pickle.dumps(there)) == there
    assert MemberConfig.from_any({"model": "small:aspen", "backend": "stub", "backend_options": {"text": "a"}})
    assert opener(there) == stub.Stub(text=TEXT, place="stub:2")


def test_a_grammar_is_refused_by_a_member_whose_backend_has_no_masks():
    with Ensemble(members=[LOCAL, config()]) as ensemble:
        with pytest.raises(ConfigError, match=r"member 'counts'.*mask") as caught:
            ensemble.generate(PROMPT, grammar=Grammar.regex("[a-z]+"))
        assert "local" in caught.value.hint
        assert ensemble.generate(PROMPT, max_new_tokens=1).text


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_refused_and_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(stub.StubBackend, "close", lambda self: closed.append(self))
    with pytest.raises(TokenizerMismatchError, match=r"member 'counts'.*the model knows 300"):
        load_member(config(backend_options={"vocab_size": 300}))
    assert len(closed) == 1


# --- the contract ---


def test_the_contract_does_not_import_the_engine():
    imported = {
        node.module
        for node in ast.walk(ast.parse(Path(base.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    }
    assert not any("engine" in name or name.startswith("torch") for name in imported)
    run = subprocess.run(
        [sys.executable, "-c", "import sys, adafuse_core.backends.base; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [name for name in run.stdout.split() if name == "torch" or name.startswith("adafuse_core.engine")]


# --- errors say whether a retry can help ---


def test_errors_say_whether_a_retry_can_help_even_after_pickling():
    errors = {
        MemberError("no memory left"): True,
        MemberError("no such token", retryable=False): False,
        NonFiniteLogitsError("NaN"): False,
        ConfigError("unknown"): False,
    }
    for error, retryable in errors.items():
        assert error.retryable is retryable
        assert pickle.loads(pickle.dumps(error)).retryable is retryable
