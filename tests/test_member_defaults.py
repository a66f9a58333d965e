"""`member_defaults` apply to fields that a member does not set, and survive round trips."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import yaml

from adafuse_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, ScriptedMember
from adafuse_core.checks import field_names
from adafuse_core.member_config import SHARED_OPTIONS

# For every field that may be a default: two values that differ from the built-in one.
VALUES = {
    "revision": ("main", "v2"),
    "gguf_file": ("a.gguf", "b.gguf"),
    "backend": ("local", "local"),
    "backend_options": ({}, {}),
    "dtype": ("bfloat16", "float64"),
    "device": ("cuda:0", "cpu"),
    "device_map": ("auto", {"": 1}),
    "attn_implementation": ("eager", "sdpa"),
    "quantization_config": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq"}),
    "trust_remote_code": (True, False),
    "tokenizer": ("org/tokenizer", "org/other"),
    "tokenizer_class": ("file", "auto"),
    "chat_template": ("{{ messages }}", "{{ messages[0] }}"),
    "template_kwargs": ({"enable_thinking": False}, {}),
    "tool_dialect": ("mistral", "hermes"),
    "end_tokens": (("<|im_end|>",), ("</s>",)),
    "context_window": (512, 1024),
    "model_kwargs": ({"cache_dir": "/models"}, {"low_cpu_mem_usage": True}),
    "kv_store": ("fork", "auto"),
    "cuda_graphs": (False, True),
    "max_kv_tokens": (4096, 100),
    "prefix_cache": (False, True),
    "selftest": ("always", "cached"),
}


PER_MEMBER = {"model", "adapter", "name", "weight"}


def test_every_other_field_may_be_a_default():
    assert set(VALUES) == set(SHARED_OPTIONS) == set(field_names(MemberConfig)) - PER_MEMBER


def forms(name):
    """A config with a default and two members, the second of which sets the field, in every notation."""
    default, own = VALUES[name]
    members = ["org/one", {"model": "org/two", name: own}]
    yield EnsembleConfig(members=members, member_defaults={name: default})
    yield EnsembleConfig.from_any({"members": members, "member_defaults": {name: default}})
    yield EnsembleConfig.from_any({"members": members, name: default})
    yield EnsembleConfig(members=[MemberConfig(model="org/one"), MemberConfig(model="org/two", **{name: own})]).updated(
        {name: default}
    )
    yield Ensemble(members=members, **{name: default}).config
    yield Ensemble.from_config({"members": members}, member_defaults={name: default}).config


@pytest.mark.parametrize("name", VALUES)
def test_defaults_apply_to_fields_that_a_member_does_not_set(name):
    default, own = VALUES[name]
    for config in forms(name):
        assert [getattr(member, name) for member in config.members] == [default, own]
        assert config.member_defaults == {name: default}


@pytest.mark.parametrize("name", VALUES)
def test_a_default_survives_dict_json_yaml_pickle_copy_replace_and_an_update(name):
    (config, *others) = forms(name)
    twins = [
        *others,
        EnsembleConfig.from_any(config.to_dict()),
        EnsembleConfig.from_any(json.loads(json.dumps(config.to_dict()))),
        EnsembleConfig.from_any(yaml.safe_load(yaml.safe_dump(config.to_dict()))),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        dataclasses.replace(config),
        config.updated({"tau": 0.5}).updated({"tau": config.strategy.tau}),
    ]
    for twin in twins:
        assert twin == config
        assert twin.updated({name: VALUES[name][1]}).members == config.updated({name: VALUES[name][1]}).members


def test_a_value_that_a_member_sets_wins_also_if_it_is_the_builtin_default():
    members = [{"model": "a", "dtype": "auto"}, MemberConfig(model="b", trust_remote_code=False), "c"]
    config = EnsembleConfig(members=members, member_defaults={"dtype": "float16", "trust_remote_code": True})
    for same in (config, dataclasses.replace(config), EnsembleConfig.from_any(config.to_dict())):
        assert [member.dtype for member in same.members] == ["auto", "float16", "float16"]
        assert [member.trust_remote_code for member in same.members] == [True, False, True]


def test_defaults_can_be_updated_and_apply_to_later_members():
    config = EnsembleConfig(members=["a", "b"], member_defaults={"dtype": "float16", "device": "cuda:0"})
    changed = config.updated({"dtype": "float32"})
    assert {(member.dtype, member.device) for member in changed.members} == {("float32", "cuda:0")}
    renamed = config.updated({"members": ["c"]})
    assert [(member.label, member.dtype) for member in renamed.members] == [("c", "float16")]
    assert Ensemble(dtype="float64").config.members[1].dtype == "float64"  # of the small models


@pytest.mark.parametrize(("default", "own"), [("device", "device_map"), ("device_map", "device")])
def test_a_member_with_a_device_ignores_default_devices(default, own):
    config = EnsembleConfig(members=["a", {"model": "b", own: "cpu"}], member_defaults={default: "cuda:0"})
    assert [(getattr(member, default), getattr(member, own)) for member in config.members] == [
        ("cuda:0", None),
        (None, "cpu"),
    ]


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({"dtype": "fp16"}, "dtype='fp16'"),
        ({"device": "cpu", "device_map": "auto"}, "both set"),
        ({"dtpye": "float16"}, "did you mean 'dtype'"),
        ({"weight": 2.0}, "one member"),
        ({"model": "a"}, "one member"),
        ({"name": "a"}, "one member"),
        ({"top_p": 0.9}, "temperature"),
        ([], "mapping"),
        ("float16", "mapping"),
        (None, "mapping"),
    ],
)
def test_defaults_are_checked_at_once(defaults, problem):
    with pytest.raises(ConfigError, match=problem):
        EnsembleConfig(members=["a"], member_defaults=defaults)
    with pytest.raises(ConfigError, match=problem):
        EnsembleConfig.from_any({"members": ["a"], "member_defaults": defaults})


def test_options_for_loading_are_refused_with_ready_made_members():
    with pytest.raises(ConfigError, match="already loaded"):
        Ensemble(members=[ScriptedMember("m", "hi")], dtype="float16")


def test_a_config_of_transformers_is_kept_as_a_mapping():
    class Quantization:
        def to_dict(self):
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}

    config = EnsembleConfig(members=["a"], member_defaults={"quantization_config": Quantization()})
    assert config.members[0].quantization_config == Quantization().to_dict()
    assert EnsembleConfig.from_any(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
