"""Loading a member: errors name the member, the problem and a solution."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    Qwen2Config,
    T5Config,
    T5ForConditionalGeneration,
)

from adafuse_core.errors import (
    ModelLoadError,
    ModelNotFoundError,
    TokenizerMismatchError,
    UnsupportedModelError,
)
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.base import Opening
from adafuse_core.members.loader import load_member
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A valid small model."""
    return tiny.save_tiny(tmp_path_factory.mktemp("loader") / "good", tiny.byte_level())


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the model that tests may damage."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(kind, model, **options):
    """The error of a load that must fail; it names the member and says what to do."""
    with pytest.raises(ModelLoadError) as caught:
        load_member(MemberConfig(model=str(model), name="mine", dtype="float64", **options))
    error = caught.value
    assert type(error) is kind, repr(error)
    assert error.member == "mine"
    assert error.message
    assert error.hint
    assert str(error).startswith("member 'mine': ")
    assert "\nHint: " in str(error)
    return error


def edit(path, **changes):
    """Change values of a JSON file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | changes), encoding="utf-8")


def test_a_good_folder_loads(folder):
    member = load_member(MemberConfig(model=str(folder), name="mine", weight=2.0, dtype="float64"))
    assert (member.name, member.weight, member.context_window) == ("mine", 2.0, 512)
    facts = member.describe()
    assert facts["dtype"] == "float64"
    assert facts["end_tokens"] == ["<|im_end|>"]
    assert facts["chat_template"] is True
    assert facts["cache"].startswith("tree (it reproduces fresh passes")  # another test may have left a verdict
    member.close()


@pytest.mark.parametrize(
    "model", ["./no/such/folder", "/no/such/folder", "~/no-such-folder", "no/such/folder", "no-such-org/no-such-model"]
)
def test_a_missing_model_is_named(model):
    assert model in refusal(ModelNotFoundError, model).message


def test_an_unknown_small_model_is_refused_with_the_known_ones():
    error = refusal(ModelNotFoundError, "small:oak")
    assert "oak" in error.message
    assert "aspen" in str(error)
    assert "birch" in str(error)


def test_a_folder_without_config_is_refused(tmp_path):
    assert str(tmp_path) in refusal(ModelNotFoundError, tmp_path).message


def test_a_folder_without_weights_is_refused(broken):
    (broken / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(ModelLoadError, broken).message


def test_a_folder_without_tokenizer_is_refused(broken):
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    refusal(ModelLoadError, broken)


def test_a_missing_tokenizer_is_named(folder):
    assert "no-such-folder" in refusal(ModelNotFoundError, folder, tokenizer="./no-such-folder").message


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_refused(broken, file):
    (broken / file).write_bytes((broken / file).read_bytes()[:50])
    assert str(broken) in refusal(ModelLoadError, broken).message


def test_an_unknown_architecture_is_refused(broken):
    edit(broken / "config.json", model_type="no_such_architecture", architectures=None)
    assert "no_such_architecture" in refusal(ModelLoadError, broken).message


def test_an_unknown_option_of_the_model_is_refused(folder):
    refusal(ModelLoadError, folder, model_kwargs={"no_such_option": 1})


def test_an_unknown_attention_is_refused(folder):
    assert "no_such" in refusal(ModelLoadError, folder, attn_implementation="no_such").message


def test_an_encoder_is_refused(tmp_path):
    tokenizer = tiny.byte_level()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    error = refusal(UnsupportedModelError, tmp_path, tokenizer_class="file")
    assert "causal" in error.message
    assert "decoder-only" in error.hint


def test_an_encoder_decoder_is_refused(tmp_path):
    tokenizer = tiny.byte_level()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    error = refusal(UnsupportedModelError, tmp_path, tokenizer_class="file")
    assert "encoder-decoder" in error.message
    assert "t5" in error.message
    assert "decoder-only" in error.hint


@pytest.fixture(scope="module")
def mistyped(tmp_path_factory):
    """A Metaspace tokenizer in a folder whose config says Qwen2: transformers chooses another class."""
    folder = tmp_path_factory.mktemp("mistyped")
    shape = {key: value for key, value in tiny._SHAPE.items() if key != "initializer_range"}
    tiny.save_tiny(folder, tiny.metaspace(), lambda vocab: Qwen2Config(vocab_size=vocab, **shape))
    edit(folder / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    return folder


def test_a_tokenizer_that_encodes_unlike_its_file_is_refused(mistyped):
    error = refusal(TokenizerMismatchError, mistyped)
    assert "tokenizer.json" in error.message
    assert "tokenizer_class='file'" in error.hint


def test_tokenizer_class_file_takes_the_tokenizer_as_it_is_saved(mistyped):
    member = load_member(MemberConfig(model=str(mistyped), tokenizer_class="file", dtype="float64"))
    text = "Hello  world, 1984\n日本"
    expected = Tokenizer.from_file(str(mistyped / "tokenizer.json")).encode(text).ids
    assert member.prompt_reader.count_tokens(text) == len(expected)
    assert list(member.prompt_reader.codec.encode_prompt(text)[0]) == expected


def test_tokenizer_class_file_needs_the_file(broken):
    (broken / "tokenizer.json").unlink()
    error = refusal(ModelLoadError, broken, tokenizer_class="file")
    assert "tokenizer.json" in error.message


def test_a_tokenizer_larger_than_the_model_is_refused(folder, tmp_path):
    larger = tiny.byte_level(420)
    larger.save_pretrained(tmp_path)
    error = refusal(TokenizerMismatchError, folder, tokenizer=str(tmp_path))
    assert "420" in error.message
    assert "400" in error.message
    assert "belongs" in error.hint


def test_a_tokenizer_smaller_than_the_model_is_fine(folder, tmp_path):
    tiny.byte_level(350).save_pretrained(tmp_path)
    assert load_member(MemberConfig(model=str(folder), tokenizer=str(tmp_path), dtype="float64")).end_ids


@pytest.fixture
def endless(broken):
    """A folder that declares no end token."""
    edit(broken / "tokenizer_config.json", eos_token=None, chat_template=None)
    (broken / "chat_template.jinja").unlink()
    edit(broken / "config.json", eos_token_id=None)
    (broken / "generation_config.json").unlink()
    return broken


def test_a_model_without_end_token_is_refused(endless):
    error = refusal(UnsupportedModelError, endless)
    assert "end token" in error.message
    assert "end_tokens" in error.hint


def test_an_end_token_may_be_named(endless):
    member = load_member(MemberConfig(model=str(endless), end_tokens=("<|im_end|>",), dtype="float64"))
    assert member.describe()["end_tokens"] == ["<|im_end|>"]


def test_the_token_that_the_template_writes_after_a_turn_is_an_end_token(endless):
    member = load_member(MemberConfig(model=str(endless), chat_template=tiny.CHATML, dtype="float64"))
    assert member.describe()["end_tokens"] == ["<|im_end|>"]


def test_end_tokens_of_all_sources_are_gathered(broken):
    edit(broken / "generation_config.json", eos_token_id=[0, 1])
    member = load_member(MemberConfig(model=str(broken), end_tokens=("!",), dtype="float64"))
    assert set(member.describe()["end_tokens"]) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "!"}


def test_end_tokens_of_a_generation_config_that_is_given_take_the_place_of_the_files(endless):
    edit(endless / "config.json", eos_token_id=None)
    options = {"model_kwargs": {"generation_config": GenerationConfig(eos_token_id=[1, 5])}}
    assert load_member(MemberConfig(model=str(endless), dtype="float64", **options)).end_ids == {1, 5}


def test_without_a_generation_config_the_end_tokens_are_those_of_the_config(endless):
    edit(endless / "config.json", eos_token_id=[2, 7])
    assert load_member(MemberConfig(model=str(endless), dtype="float64")).end_ids == {2, 7}


def test_changes_of_the_config_in_model_kwargs_apply(endless):
    options = {"model_kwargs": {"eos_token_id": 9, "max_position_embeddings": 300}}
    member = load_member(MemberConfig(model=str(endless), dtype="float64", **options))
    assert (member.end_ids, member.context_window) == ({9}, 300)


def test_an_unknown_end_token_is_refused(folder):
    error = refusal(ModelLoadError, folder, end_tokens=("<|nowhere|>",))
    assert "<|nowhere|>" in error.message


@pytest.mark.parametrize(("given", "window"), [(None, 512), (100, 100), (9999, 512)])
def test_the_context_window_is_the_smaller_of_models_and_given(folder, given, window):
    member = load_member(MemberConfig(model=str(folder), context_window=given, dtype="float64"))
    assert member.context_window == window


def test_a_broken_chat_template_is_found_when_it_is_used_not_before(folder):
    member = load_member(MemberConfig(model=str(folder), chat_template="{{ nothing.at_all }}", dtype="float64"))
    prefix = member.open(Opening(prompt="Hi", max_word_tokens=24, cancel=threading.Event()))
    assert prefix.prompt_tokens > 0


def test_loading_leaves_the_default_dtype_alone(folder):
    before = torch.get_default_dtype()
    load_member(MemberConfig(model=str(folder), dtype="float64"))
    assert torch.get_default_dtype() == before


@pytest.mark.parametrize(
    "options", [{"attn_implementation": "eager"}, {"model_kwargs": {"attn_implementation": "eager"}}]
)
def test_attention_that_was_asked_for_is_the_one_that_runs(folder, options):
    member = load_member(MemberConfig(model=str(folder), selftest="always", **options))
    assert member.backend.model.module.config._attn_implementation == "eager"
    assert member.describe()["cache"] == "fork (no tree: attn_implementation was given)"


def test_max_kv_tokens_refuses_no_prompt_of_the_prefill_store(folder):
    member = load_member(MemberConfig(model=str(folder), kv_store="prefill", max_kv_tokens=1))
    assert member.open(Opening(prompt="Hi", max_word_tokens=24, cancel=threading.Event())).prompt_tokens > 0
