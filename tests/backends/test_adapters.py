"""PEFT adapters of every supported kind change a model exactly as peft does, and never its shared tensors."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from adafuse_core.backends.adapters import KINDS, add_adapter
from adafuse_core.backends.locations import Location
from adafuse_core.backends.shared_weights import twin
from adafuse_core.errors import ModelLoadError, ModelNotFoundError, UnsupportedModelError
from tests import tiny

# PeftModel, which is the reference here, warns of its own deprecated calls, and of tied weights.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([[5, 60, 70, 1, 2, 30, 44, 99, 120, 7]])
LAYERS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {**LAYERS, "r": 4, "init_lora_weights": False}
ADAPTERS = {
    "lora": peft.LoraConfig(**LORA),
    "rsLoRA": peft.LoraConfig(**LORA, use_rslora=True),
    "DoRA": peft.LoraConfig(**LORA, use_dora=True),
    "rank patterns": peft.LoraConfig(**LORA, rank_pattern={"q_proj": 7}, alpha_pattern={"v_proj": 3}),
    "one layer": peft.LoraConfig(**LORA, layers_to_transform=[0]),
    "bias of lora": peft.LoraConfig(**LORA, lora_bias=True),
    "biases of layers": peft.LoraConfig(**LORA, bias="lora_only"),
    "all biases": peft.LoraConfig(**LORA, bias="all"),
    "saved head": peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "saved embeddings": peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"]),
    "saved norm": peft.LoraConfig(**LORA, modules_to_save=["norm"]),
    "adapted embeddings": peft.LoraConfig(**LORA | {"target_modules": ["q_proj", "embed_tokens"]}),
    "adapted head": peft.LoraConfig(**LORA | {"target_modules": ["q_proj", "lm_head"]}),
    "tokens": peft.LoraConfig(**LORA, trainable_token_indices=[1, 2, 60]),
    "adalora": peft.AdaLoraConfig(**LAYERS, init_r=4, target_r=4, total_step=10),
    "boft": peft.BOFTConfig(**LAYERS, boft_block_size=4),
    "fourierft": peft.FourierFTConfig(**LAYERS, n_frequency=20),
    "hra": peft.HRAConfig(**LAYERS, r=4),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "layer norms": peft.LNTuningConfig(target_modules=["norm"]),
    "loha": peft.LoHaConfig(**LAYERS, r=4),
    "lokr": peft.LoKrConfig(**LAYERS, r=4),
    "oft": peft.OFTConfig(**LAYERS, oft_block_size=4),
    "tokens alone": peft.TrainableTokensConfig(token_indices=[1, 2, 60]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with tied embeddings, and biases in some layers."""
    return tiny.save_tiny(tmp_path_factory.mktemp("base") / "base", tiny.byte_level(), tiny.qwen2)


@pytest.fixture(scope="module")
def original(base):
    return load(base)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def train(folder, base, config):
    """Save an adapter whose weights have all changed."""
    torch.manual_seed(3)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def lora(base, tmp_path):
    return train(tmp_path / "lora", base, ADAPTERS["lora"])


def adapted(original, folder):
    model = twin(original)
    add_adapter(model, Location(source=str(folder), options={}), "the base")
    return model.eval()


def refused(kind, original, folder):
    with pytest.raises(kind) as caught:
        adapted(original, folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint
    return caught.value


def tensors(model):
    return list(chain(model.parameters(), model.buffers()))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_changes_the_model_as_peft_does(name, base, original, tmp_path):
    folder = train(tmp_path / "mine", base, ADAPTERS[name])
    expected = peft.PeftModel.from_pretrained(load(base), folder, autocast_adapter_dtype=False).double().eval()
    versions = [tensor._version for tensor in tensors(original)]
    plain = original(IDS).logits
    model = adapted(original, folder)
    assert torch.equal(model(IDS).logits, expected(IDS).logits)
    assert not torch.allclose(model(IDS).logits, plain)
    assert [tensor._version for tensor in tensors(original)] == versions
    assert torch.equal(original(IDS).logits, plain)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}


def test_every_supported_kind_is_compared_with_peft():
    assert {config.peft_type.value for config in ADAPTERS.values()} == set(KINDS)


@pytest.mark.parametrize("name", ["lora", "adapted embeddings", "adapted head", "biases of layers"])
def test_an_adapter_adds_its_own_tensors_only(name, base, original, tmp_path):
    folder = train(tmp_path / "mine", base, ADAPTERS[name])
    own = {id(tensor) for tensor in tensors(original)}
    added = sum(tensor.numel() for tensor in tensors(adapted(original, folder)) if id(tensor) not in own)
    assert 0 < added < original.get_input_embeddings().weight.numel() / 4


OTHERS = {
    "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "P_TUNING": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    "VERA": peft.VeraConfig(target_modules=["q_proj"], r=4),
    "alora_invocation_tokens": peft.LoraConfig(**LORA, alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM"),
    "init_lora_weights='pissa'": peft.LoraConfig(**LORA | {"init_lora_weights": "pissa"}),
}


@pytest.mark.parametrize("named", OTHERS)
def test_an_adapter_that_changes_more_than_layers_is_refused(named, base, original, tmp_path):
    folder = train(tmp_path / "mine", base, OTHERS[named])
    assert named in refused(UnsupportedModelError, original, folder).message


def test_a_path_without_an_adapter_is_refused(base, original):
    assert "adapter_config.json" in refused(ModelNotFoundError, original, base).message


def test_an_adapter_without_weights_is_refused(original, lora):
    (lora / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refused(ModelNotFoundError, original, lora).message


def test_an_adapter_of_a_larger_model_is_refused_with_the_name_of_that_model(original, tmp_path):
    def wide(vocab):
        config = tiny.qwen2(vocab)
        config.hidden_size, config.num_attention_heads = 96, 8
        return config

    other = tiny.save_tiny(tmp_path / "other", tiny.byte_level(), wide)
    error = refused(ModelLoadError, original, train(tmp_path / "mine", other, ADAPTERS["lora"]))
    assert "size mismatch" in error.message
    assert "the base" in error.message
    assert str(other) in error.hint


def test_an_adapter_of_another_family_is_refused(original, tmp_path):
    other = tiny.save_tiny(tmp_path / "other", tiny.byte_level(), tiny.gpt2)
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    assert "c_attn" in refused(ModelLoadError, original, train(tmp_path / "mine", other, config)).message


def test_an_adapter_of_a_deeper_model_is_refused(original, tmp_path):
    def deep(vocab):
        config = tiny.qwen2(vocab)
        config.num_hidden_layers, config.layer_types = 3, ["full_attention"] * 3
        return config

    other = tiny.save_tiny(tmp_path / "other", tiny.byte_level(), deep)
    error = refused(ModelLoadError, original, train(tmp_path / "mine", other, ADAPTERS["lora"]))
    assert "0 of its tensors are missing and 4 are unknown" in error.message


def test_an_adapter_with_a_resized_vocabulary_is_refused(base, original, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(410)
    model.save_pretrained(tmp_path / "resized")
    folder = train(tmp_path / "mine", tmp_path / "resized", ADAPTERS["adapted embeddings"])
    assert "resized vocabulary" in refused(ModelLoadError, original, folder).hint


def test_an_adapter_that_replaces_one_of_two_tied_tensors_is_refused(base, original, tmp_path):
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), ADAPTERS["adapted embeddings"])
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight[7] += 1
    model.save_pretrained(tmp_path / "mine")
    assert "another place" in refused(ModelLoadError, original, tmp_path / "mine").message


def test_the_log_names_the_base_model_that_an_adapter_names(base, original, lora, caplog):
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "owner/base"}))
    with caplog.at_level("INFO", "adafuse_core"):
        adapted(original, lora)
    assert "owner/base" in caplog.text
    assert "the base" in caplog.text


def test_an_adapter_in_a_subfolder_is_found_there(original, lora, tmp_path):
    shutil.copytree(lora, tmp_path / "repository" / "inner")
    location = Location(source=str(tmp_path / "repository"), options={"subfolder": "inner"})
    model = twin(original)
    add_adapter(model, location, "the base")
    assert torch.equal(model.eval()(IDS).logits, adapted(original, lora)(IDS).logits)
