"""Options: bounds, unknown names, and round trips through dict, YAML and pickle."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import yaml

from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import MemberConfig

NUMBERS_REFUSED = [float("nan"), float("inf"), -float("inf"), True, "1", None, [1]]


def ensemble(**options):
    return EnsembleConfig.from_any({"members": ("a/one", "b/two"), **options})


def published(**options):
    return ensemble(strategy="adafuse", **options)


@pytest.mark.parametrize(
    ("build", "option", "value"),
    [
        *[(ensemble, "tau", value) for value in (-0.001, 1.001, *NUMBERS_REFUSED)],
        *[(ensemble, option, value) for option in ("beams", "branches") for value in (0, -1, 1.0, True, "2", None)],
        *[(published, "max_words", value) for value in (0, -1, 1.0, True, "2", None)],
        *[(ensemble, "max_word_tokens", value) for value in (0, 2.5, None)],
        *[(ensemble, "strategy", value) for value in ("ada", "", None, ["adafuse"])],
        *[(ensemble, "speculation", value) for value in ("on", "", None, True)],
        *[(ensemble, "members", value) for value in ((), [], "aspen", {"model": "a"}, 3, None)],
        *[(ensemble, "generation", value) for value in (None, 5, "greedy", [])],
        *[(GenerationParams, "max_new_tokens", value) for value in (0, -1, 1.5, True, "9", float("inf"))],
        *[(GenerationParams, "temperature", value) for value in (-0.1, *NUMBERS_REFUSED)],
        *[(GenerationParams, "seed", value) for value in (1.5, "1", True)],
        *[(GenerationParams, "stop", value) for value in ("", [""], ["a", ""], [1], [None], 5, True)],
        *[(lambda **o: MemberConfig(model="m", **o), "weight", value) for value in (0, 0.0, -1, *NUMBERS_REFUSED)],
        *[(lambda **o: MemberConfig(model="m", **o), "dtype", value) for value in ("fp16", "", None, 16)],
        *[(lambda **o: MemberConfig(model="m", **o), "tokenizer_class", value) for value in ("slow", None)],
        *[(lambda **o: MemberConfig(model="m", **o), "context_window", value) for value in (0, -1, 1.5, True, "9")],
        *[(lambda **o: MemberConfig(model="m", **o), "max_kv_tokens", value) for value in (0, -1, 1.5, True, "9")],
        *[(lambda **o: MemberConfig(model="m", **o), "kv_store", value) for value in ("trees", "", None)],
        *[(lambda **o: MemberConfig(model="m", **o), "end_tokens", value) for value in ([1], 2, [None])],
        *[(MemberConfig, "model", value) for value in ("", None, 3, ["a"])],
    ],
)
def test_values_out_of_range_are_refused_with_name_and_value(build, option, value):
    with pytest.raises(ConfigError) as caught:
        build(**{option: value})
    assert option in caught.value.message
    assert "expected" in caught.value.message


@pytest.mark.parametrize("options", [{"tau": 0}, {"tau": 1}, {"tau": 0.0, "beams": 1, "branches": 1}, {"tau": 1.0}])
def test_bounds_themselves_are_allowed(options):
    assert ensemble(**options)


@pytest.mark.parametrize("options", [{"max_new_tokens": 1}, {"max_new_tokens": None}, {"temperature": 0}, {"seed": 0}])
def test_bounds_of_generation_are_allowed(options):
    assert GenerationParams(**options)


@pytest.mark.parametrize(
    ("call", "unknown", "suggestion"),
    [
        (
            lambda: EnsembleConfig.from_any({"members": ["a"], "strategy": "adafuse", "max_word": 2}),
            "max_word",
            "max_words",
        ),
        (lambda: EnsembleConfig.from_any({"members": ["a"], "Tau": 0.1}), "Tau", "tau"),
        (lambda: EnsembleConfig.from_any({"member_models": ["a"]}), "member_models", None),
        (lambda: MemberConfig.from_any({"model": "a", "wieght": 2}), "wieght", "weight"),
        (lambda: MemberConfig.from_any({"model": "a", "devicemap": "auto"}), "devicemap", "device_map"),
        (lambda: GenerationParams().updated({"max_tokens": 2}), "max_tokens", "max_new_tokens"),
        (lambda: GenerationParams().updated({"zzz": 2}), "zzz", None),
        (lambda: GenerationParams().updated({3: 2}), "3", None),
        (lambda: ensemble(generation={"stops": "x"}), "stops", "stop"),
    ],
)
def test_unknown_options_are_refused_with_a_suggestion(call, unknown, suggestion):
    with pytest.raises(ConfigError, match="unknown") as caught:
        call()
    assert unknown in caught.value.message
    assert caught.value.hint
    assert suggestion is None or f"did you mean {suggestion!r}" in caught.value.hint


def test_without_a_close_name_all_are_listed():
    with pytest.raises(ConfigError) as caught:
        GenerationParams().updated({"zzz": 1})
    assert all(field.name in caught.value.hint for field in dataclasses.fields(GenerationParams))


def test_unknown_keyword_arguments_are_refused():
    with pytest.raises(TypeError):
        MemberConfig(model="a", wieght=2)


def test_a_member_without_model_is_refused():
    with pytest.raises(ConfigError, match="model"):
        MemberConfig.from_any({"name": "a"})
    with pytest.raises(ConfigError, match="model"):
        EnsembleConfig.from_any({"members": [{"weight": 2}]})


@pytest.mark.parametrize("value", [3, None, ["a"], b"a"])
def test_other_values_as_members_are_refused(value):
    with pytest.raises(ConfigError, match="member"):
        MemberConfig.from_any(value)


def test_device_and_device_map_exclude_each_other():
    with pytest.raises(ConfigError, match="both set") as caught:
        MemberConfig(model="x/aspen", device="cpu", device_map="auto")
    assert caught.value.member == "aspen"
    assert caught.value.hint


def test_member_is_an_option_of_single_only():
    with pytest.raises(ConfigError, match="no meaning") as caught:
        ensemble(member="one")
    assert "single" in caught.value.hint
    assert ensemble(strategy="single", member="two").strategy.member == "two"
    with pytest.raises(ConfigError, match=r"'three'.*'one', 'two'"):
        ensemble(strategy="single", member="three")


def test_temperature_needs_a_strategy_with_a_choice():
    with pytest.raises(ConfigError, match="single") as caught:
        ensemble(strategy="single", generation={"temperature": 0.5})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("small:aspen", "aspen"),
        ("/models/one/", "one"),
        ("gpt2", "gpt2"),
        ("./x", "x"),
    ],
)
def test_label_is_the_last_part_of_the_model(model, label):
    assert MemberConfig(model=model).label == label
    assert MemberConfig(model=model, name="mine").label == "mine"


def test_names_are_made_unique_in_order():
    config = EnsembleConfig(members=("a/m", "b/m", "c/m", MemberConfig(model="d", name="m-2"), "m"))
    labels = [member.label for member in config.members]
    assert labels[:3] == ["m", "m-2", "m-3"]
    assert len(set(labels)) == 5
    assert [member.model for member in config.members] == ["a/m", "b/m", "c/m", "d", "m"]


def test_unique_names_stay_when_a_config_is_built_again():
    config = EnsembleConfig(members=("a/m", "b/m"))
    assert EnsembleConfig(members=config.members) == config


def test_a_single_string_is_one_stop_string_or_end_token():
    assert GenerationParams(stop="\n\n").stop == ("\n\n",)
    assert GenerationParams(stop=["a", "b"]).stop == ("a", "b")
    assert GenerationParams(stop=None).stop == ()
    assert MemberConfig(model="m", end_tokens="</s>").end_tokens == ("</s>",)


def test_updating_changes_a_copy():
    params = GenerationParams(stop="x")
    changed = params.updated({"max_new_tokens": 3, "stop": None})
    assert (changed.max_new_tokens, changed.stop) == (3, ())
    assert params == GenerationParams(stop="x")
    assert params.updated({}) == params
    with pytest.raises(ConfigError, match="temperature"):
        params.updated({"temperature": -1})


FULL = {
    "members": [
        "org/plain",
        {
            "model": "org/full",
            "name": "full",
            "weight": 2.5,
            "revision": "main",
            "dtype": "bfloat16",
            "device_map": {"": 0},
            "attn_implementation": "eager",
            "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "trust_remote_code": True,
            "tokenizer": "org/other",
            "tokenizer_class": "file",
            "chat_template": "{{ messages }}",
            "template_kwargs": {"enable_thinking": False},
            "end_tokens": ["<|im_end|>"],
            "context_window": 512,
            "model_kwargs": {"low_cpu_mem_usage": True},
            "kv_store": "fork",
            "max_kv_tokens": 4096,
        },
    ],
    "strategy": "adafuse",
    "tau": 0.5,
    "max_words": 2,
    "branches": 4,
    "max_word_tokens": 12,
    "speculation": "verify",
    "generation": {"max_new_tokens": None, "stop": ["\n\n", "###"], "temperature": 0.25, "seed": 3},
}
CONFIGS = [
    *(ensemble(), ensemble(strategy="single", member="two"), EnsembleConfig.from_any(FULL)),
    *(ensemble(pool="linear"), ensemble(pool_exponent=0.25), published(pool="power")),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_dict_json_yaml_pickle_and_copy_give_an_equal_config_back(config):
    plain = config.to_dict()
    twins = [
        EnsembleConfig.from_any(plain),
        EnsembleConfig.from_any(json.loads(json.dumps(plain))),
        EnsembleConfig.from_any(yaml.safe_load(yaml.safe_dump(plain))),
        EnsembleConfig.from_any(config),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
    ]
    for twin in twins:
        assert twin == config
        assert hash(twin) == hash(config)
        assert [one.load_key for one in twin.members] == [one.load_key for one in config.members]


def test_to_dict_shares_nothing_with_the_config():
    config = EnsembleConfig.from_any(FULL)
    config.to_dict()["members"][1]["template_kwargs"]["enable_thinking"] = True
    assert config.members[1].template_kwargs == {"enable_thinking": False}


def test_a_full_config_keeps_every_option():
    config = EnsembleConfig.from_any(FULL)
    full = config.members[1]
    for option, value in FULL["members"][1].items():
        assert getattr(full, option) == (tuple(value) if isinstance(value, list) else value)
    assert config.generation == GenerationParams(max_new_tokens=None, stop=("\n\n", "###"), temperature=0.25, seed=3)


def test_a_yaml_file_is_read(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(
        "members:\n  - small:aspen\n  - {model: small:birch, weight: 2}\ntau: 0.5\ngeneration: {stop: '###'}\n",
        encoding="utf-8",
    )
    config = EnsembleConfig.from_any(path)
    assert config == EnsembleConfig.from_any(str(path))
    assert [member.label for member in config.members] == ["aspen", "birch"]
    assert config.members[1].weight == 2
    assert config.generation.stop == ("###",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"members: [a", "not valid YAML"),
        (b"", "expected a mapping"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"tau: 0.5\n", "no 'members'"),
        (b"members: [a]\nthreshold: 1\n", "unknown ensemble option 'threshold'"),
        (b"members: [a]\ngeneration:\n", "generation"),
        (b"members: \xff\xfe\n", "not valid YAML"),
        (b"members: [a]\ntau: 0.5\ntau: 0.9\n", "'tau' occurs twice"),
        (b"members: [{model: a, weight: 1, weight: 2}]\n", "'weight' occurs twice"),
    ],
)
def test_a_broken_yaml_file_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "ensemble.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        EnsembleConfig.from_any(path)
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["\x85a", "a\x85b", "\n\x85", "\x85\u2028é\n", "日本 é", "\x00\x1b"])
def test_every_text_survives_its_file(tmp_path, text):
    config = EnsembleConfig(members=["a"], generation={"stop": [text], "cache_namespace": text})
    config.save(tmp_path / "ensemble.yaml")
    assert EnsembleConfig.from_any(tmp_path / "ensemble.yaml") == config


def test_a_deeply_nested_file_is_refused(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text("[" * 10_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        EnsembleConfig.from_any(path)


def test_merged_keys_of_yaml_may_be_overridden(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(
        "members:\n- &first {model: a, weight: 1}\n- &second {<<: *first, model: b}\n- {<<: *second, weight: 3}\n"
    )
    members = EnsembleConfig.from_any(path).members
    assert [(member.model, member.weight) for member in members] == [("a", 1), ("b", 1), ("b", 3)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        EnsembleConfig.from_any(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=tmp_path.name):
        EnsembleConfig.from_any(tmp_path)


def test_load_key_ignores_name_and_weight_only():
    base = MemberConfig(model="m")
    assert MemberConfig(model="m", name="x", weight=3).load_key == base.load_key
    for option, value in [*FULL["members"][1].items(), ("model", "n"), ("device", "cpu")]:
        if option not in ("name", "weight") and not (option == "model" and value == "m"):
            assert dataclasses.replace(base, **{option: value}).load_key != base.load_key


def test_equal_configs_are_one_dictionary_key():
    assert len({MemberConfig(model="m"), MemberConfig(model="m"), MemberConfig(model="m", name="m")}) == 2
    assert len({*CONFIGS, *CONFIGS}) == len(CONFIGS)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ensemble().tau = 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        MemberConfig(model="m").weight = 2


def test_errors_keep_their_parts_through_pickle():
    with pytest.raises(ConfigError) as caught:
        MemberConfig(model="x", device="cpu", device_map="auto")
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (twin.message, twin.member, twin.hint) == (caught.value.message, "x", caught.value.hint)
    assert str(twin) == str(caught.value)
    assert isinstance(twin, ValueError)
