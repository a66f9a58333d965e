"""Quantized models as members: which configs load, what their answers equal, and what the self-test finds."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TorchAoConfig

from adafuse_core import Ensemble, EnsembleConfig, MemberConfig, ModelLoadError
from adafuse_core.small_models import path
from tests import tiny
from tests.agreement import full_text
from tests.oracle import OracleEnsemble, OracleMember

INT8 = TorchAoConfig(Int8WeightOnlyConfig())
INT4 = TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
MIXED_INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
TORCHAO_BY_HAND = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
}
PROMPTS = (
    "What is the capital of Peru?",
    "Question: which river flows through Cairo?\nAnswer:",
    "The opposite of hot is",
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny model whose rows are whole blocks of 64 weights, which bitsandbytes needs on a CPU."""
    shape = tiny._SHAPE | {"hidden_size": 64, "intermediate_size": 128}
    folder = tmp_path_factory.mktemp("wide")
    return tiny.save_tiny(folder, tiny.byte_level(), lambda vocab: LlamaConfig(vocab_size=vocab, **shape))


def quantized(folder, config):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)


def save_dequantized(model, folder, tokenizer):
    """Save the values that the quantized weights stand for, in float32."""
    plain = AutoModelForCausalLM.from_config(_without_quantization(model.config), dtype=torch.float32)
    values = {
        name: getattr(value, "dequantize", lambda value=value: value)().detach()
        for name, value in model.named_parameters()
    }
    plain.load_state_dict(values, strict=False)
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


def _without_quantization(config):
    fields = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    return type(config)(**fields)


def test_weight_only_members_give_the_oracles_text(tmp_path, count):
    configs = {"aspen": INT8, "birch": INT4}
    members = [
        {"model": f"small:{name}", "dtype": "float32", "quantization_config": config}
        for name, config in configs.items()
    ]
    folders = [
        save_dequantized(quantized(path(name), config), tmp_path / name, path(name)) for name, config in configs.items()
    ]
    oracle = OracleEnsemble([OracleMember(folder) for folder in folders], tau=0.7, max_words=3, branches=3)
    equal = 0
    with Ensemble({"members": members, "strategy": "adafuse", "tau": 0.7, "max_words": 3, "branches": 3}) as ensemble:
        assert [member.abilities().cache.split()[0] for member in (m.backend for m in ensemble.members)] == ["tree"] * 2
        for prompt in PROMPTS:
            answer = ensemble.generate(prompt, max_new_tokens=24)
            assert full_text(answer) == oracle.answer(prompt, max_new_tokens=24).full_text
            equal += 1
    count("answers of quantized members equal to the oracle's", equal, at_least=3)


@pytest.mark.parametrize(
    "config", [INT8, INT4, INT8.to_dict(), TORCHAO_BY_HAND, NF4], ids=lambda each: type(each).__name__
)
def test_a_config_survives_yaml_and_json(config):
    member = MemberConfig(model="m", name="m", quantization_config=config)
    written = EnsembleConfig(members=[member]).to_dict()
    assert EnsembleConfig.from_any(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(written))))).members[0] == member


@pytest.mark.parametrize(
    ("config", "shown"), [(TORCHAO_BY_HAND, "torchao Int8WeightOnlyConfig"), (NF4, "bitsandbytes nf4")]
)
def test_a_saved_quantized_folder_needs_no_options(tmp_path, wide, config, shown):
    quantized(wide, config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(wide).save_pretrained(tmp_path)
    given = {"model": str(wide), "name": "m", "dtype": "float32", "quantization_config": config}
    answers = []
    for member in (given, {"model": str(tmp_path), "name": "m"}):
        with Ensemble({"members": [member]}) as ensemble:
            assert ensemble.describe()["members"][0]["dtype"] == f"float32, weights quantized with {shown}"
            answers.append(ensemble.generate("The dog", max_new_tokens=12).text)
    assert answers[0] == answers[1]


CHECKPOINTS = {
    "pack-quantized": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    "int-quantized": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "float-quantized": {"num_bits": 8, "type": "float", "strategy": "channel"},
}


def save_compressed(folder, source, kind):
    """Save a checkpoint in a format of compressed-tensors, with scales by the largest weights."""
    args = QuantizationArgs(**CHECKPOINTS[kind])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], format=kind, quantization_status="frozen"
    )
    model = AutoModelForCausalLM.from_pretrained(source)
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            groups = module.weight.detach().unflatten(1, (-1, args.group_size or module.weight.shape[1]))
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
            module.weight_scale.data = scale.reshape(module.weight_scale.shape)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_compressed_tensors_need_no_options(tmp_path, wide, kind):
    save_compressed(tmp_path, wide, kind)
    with Ensemble({"members": [str(tmp_path)]}) as ensemble:
        described = ensemble.describe()["members"][0]
        module = ensemble.members[0].backend.model.module
        assert described["dtype"] == f"float32, weights quantized with compressed-tensors {kind}"
        assert described["cache"].startswith("tree")
        assert ensemble.generate("The dog", max_new_tokens=4).text
    original = AutoModelForCausalLM.from_pretrained(wide).model.layers[0].mlp.up_proj.weight
    error = (module.model.layers[0].mlp.up_proj.weight - original).abs().max() / original.abs().max()
    assert 0 < error < 0.1


def test_quantized_activations_are_no_reason_to_refuse_a_model(wide):
    config = {"model": str(wide), "dtype": "float32", "quantization_config": MIXED_INT8}
    with Ensemble({"members": [config]}) as ensemble:
        assert "rounding errors up to 0." in ensemble.describe()["members"][0]["cache"]


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "pip install optimum gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "pip install gptqmodel"),
    ],
    ids=lambda each: each["quant_method"] if isinstance(each, dict) else "",
)
def test_a_method_that_can_not_run_names_the_member_and_the_remedy(tmp_path, config, hint):
    folder = tiny.save_tiny(tmp_path / "gone", tiny.byte_level())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": config}))
    with pytest.raises(ModelLoadError, match=f"member 'gone'.*quantized with {config['quant_method']}") as caught:
        Ensemble({"members": [{"model": str(folder), "device": "cpu"}]}).load()
    assert hint in caught.value.hint


def test_a_method_that_needs_a_gpu_says_so():
    member = {"model": "small:aspen", "device": "cpu", "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(ModelLoadError, match=r"member 'aspen'.*quantized with fp8.*GPU"):
        Ensemble({"members": [member]}).load()
