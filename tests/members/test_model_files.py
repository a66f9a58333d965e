"""Model folders, GGUF files and adapters. File options apply to every read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, utils

from adafuse_core import Ensemble
from adafuse_core.backends import adapters, huggingface, locations
from adafuse_core.chat.messages import Message
from adafuse_core.errors import ConfigError, ModelLoadError, ModelNotFoundError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import model_files
from adafuse_core.members.context_windows import declared_window, window_on_disk
from adafuse_core.members.loader import load_member
from adafuse_core.members.tokenizers import load_encoder
from tests import tiny
from tests.gguf_file import write_gguf

PROMPT = "The quick brown fox"
CHAT = [{"role": "user", "content": "What is it?"}]


def alone(**member):
    """One member without branches: its text is its own greedy decoding."""
    return Ensemble(members=[MemberConfig(dtype="float64", **member)], branches=1)


def greedy(model, tokenizer, ids, tokens=24):
    """The greedy continuation by transformers."""
    ends = [tokenizer.eos_token_id]
    written = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=ends)
    return tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)


def refused(kind, **member):
    with pytest.raises(kind) as caught:
        load_member(MemberConfig(name="mine", **member))
    assert caught.value.member == "mine"
    assert caught.value.hint
    return caught.value


# --- GGUF files ---


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny-q8.gguf")


def ways(path):
    """All the ways to name a GGUF file."""
    return {
        "path": {"model": str(path)},
        "folder and name": {"model": f"{path.parent}:{path.name}"},
        "folder, name and field": {"model": f"{path.parent}:{path.name}", "gguf_file": path.name},
        "subfolder and name": {"model": f"{path.parent.parent}:{path.parent.name}/{path.name}"},
        "field": {"model": str(path.parent), "gguf_file": path.name},
        "model_kwargs": {"model": str(path.parent), "model_kwargs": {"gguf_file": path.name}},
        "subfolder": {"model": str(path.parent.parent), "gguf_file": f"{path.parent.name}/{path.name}"},
        "subfolder option": {
            "model": str(path.parent.parent),
            "gguf_file": path.name,
            "model_kwargs": {"subfolder": path.parent.name},
        },
    }


@pytest.mark.parametrize("way", ways(Path("a/b")))
@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["text", "chat"])
def test_a_gguf_member_writes_what_transformers_writes(gguf_path, way, prompt):
    folder, file = str(gguf_path.parent), gguf_path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float64)
    if prompt is PROMPT:
        ids = tokenizer(prompt)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    with alone(**ways(gguf_path)[way]) as ensemble:
        text = ensemble.generate(prompt, max_new_tokens=24).text
    assert text == greedy(model, tokenizer, ids)
    assert len(text) > 10


def test_a_gguf_file_tells_window_template_and_end_tokens(gguf_path):
    config = MemberConfig(model=str(gguf_path))
    assert config.label == "tiny-q8"
    assert declared_window(config) == window_on_disk(config) == 512
    assert window_on_disk(MemberConfig(model=str(gguf_path), context_window=99)) == 99
    assert load_encoder(config).tokenizer.chat_template == tiny.CHATML
    member = load_member(config)
    assert member.describe()["end_tokens"] == ["<|im_end|>"]
    member.close()


def test_control_tokens_of_a_gguf_file_are_control_tokens_and_never_text(gguf_path):
    encoder = load_encoder(MemberConfig(model=str(gguf_path)))
    ids = encoder.encode([Message(role="user", content="<|im_end|>")]).ids
    assert list(ids).count(encoder.tokenizer.eos_token_id) == 1


def test_two_files_of_one_folder_are_two_models(gguf_path, tmp_path):
    names = ("one.gguf", "two.gguf")
    for seed, name in enumerate(names):
        write_gguf(tmp_path / name, seed=seed)
    configs = [MemberConfig(model=str(tmp_path), gguf_file=name) for name in names]
    assert configs[0].load_key != configs[1].load_key
    texts = [alone(model=str(tmp_path), gguf_file=name).generate(PROMPT, max_new_tokens=12).text for name in names]
    assert texts[0] != texts[1]


def test_the_tokenizer_may_be_that_of_a_folder_or_of_another_gguf_file(gguf_path, tmp_path):
    tiny.byte_level().save_pretrained(tmp_path)
    for tokenizer in (str(tmp_path), str(gguf_path)):
        config = MemberConfig(model=str(gguf_path), tokenizer=tokenizer)
        assert load_encoder(config).count_tokens(PROMPT) == load_encoder(
            MemberConfig(model=str(gguf_path))
        ).count_tokens(PROMPT)


def test_a_gguf_file_may_have_any_name(gguf_path, tmp_path):
    (tmp_path / "a:b").mkdir()
    for path in (tmp_path / "MODEL.GGUF", tmp_path / "a:b" / "c:d.gguf"):
        shutil.copy(gguf_path, path)
        assert load_encoder(MemberConfig(model=str(path))).tokenizer.chat_template == tiny.CHATML
    assert MemberConfig(model="owner/name:tiny-q8.gguf").label == "tiny-q8"


@pytest.mark.parametrize("model", [r"C:\models\x.gguf", "C:/models/x.gguf", "small:x.gguf"])
def test_a_colon_of_a_drive_or_of_a_small_model_does_not_name_a_file(model):
    error = refused(ModelNotFoundError, model=model)
    assert repr(model) in error.message


def test_two_names_for_the_gguf_file_of_a_member_are_refused(gguf_path):
    error = refused(ConfigError, model=f"{gguf_path.parent}:{gguf_path.name}", gguf_file="other.gguf")
    assert "other.gguf" in error.message
    assert gguf_path.name in error.message


def test_a_repository_name_with_a_file_is_located_like_the_field(gguf_path):
    asked = []

    def find(location, name):
        asked.append((location, name))
        return gguf_path

    for given in ({"model": "owner/name:q8/x.gguf"}, {"model": "owner/name", "gguf_file": "q8/x.gguf"}):
        files = model_files.member_files(MemberConfig(revision="v1", **given), find)
        assert files.model == locations.Location(source=str(gguf_path.parent), options={}, gguf_file=gguf_path.name)
    assert asked[0] == asked[1]
    location, name = asked[0]
    assert (location.source, location.options, name) == ("owner/name", {"revision": "v1"}, "q8/x.gguf")


def test_pieces_of_a_gguf_file_are_refused_before_a_download(tmp_path):
    piece = tmp_path / "x-00001-of-00003.gguf"
    piece.touch()
    for model in (str(piece), f"{tmp_path}:{piece.name}", f"owner/name:{piece.name}"):
        error = refused(UnsupportedModelError, model=model)
        assert "one of 3 pieces" in error.message
        assert "--merge" in error.hint


def test_a_missing_gguf_file_is_named_with_those_that_are_there(gguf_path, tmp_path):
    error = refused(ModelNotFoundError, model=str(gguf_path.parent), gguf_file="other.gguf")
    assert "other.gguf" in error.message
    assert gguf_path.name in error.hint
    assert "no GGUF file" in refused(ModelNotFoundError, model=str(tmp_path), gguf_file="other.gguf").hint
    assert "nowhere.gguf" in refused(ModelNotFoundError, model=str(tmp_path / "nowhere.gguf")).message
    assert "model='owner/name:x.gguf'" in refused(ModelNotFoundError, model="owner/name/x.gguf").hint
    assert "no-such-org/model" in refused(ModelNotFoundError, model="no-such-org/model", gguf_file="x.gguf").message


def test_other_files_as_models_are_refused(tmp_path, gguf_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "folder" in refused(ModelNotFoundError, model=str(tmp_path / "model.safetensors")).hint
    assert "is a file" in refused(ModelNotFoundError, model=str(gguf_path), gguf_file="other.gguf").message
    (tmp_path / "bad.gguf").write_bytes(b"no model at all, but long enough to be read")
    assert "bad.gguf" in refused(ModelLoadError, model=str(tmp_path / "bad.gguf")).message
    assert window_on_disk(MemberConfig(model=str(tmp_path / "bad.gguf"))) is None


def test_without_the_package_of_gguf_files_the_error_says_what_to_install(gguf_path, monkeypatch):
    monkeypatch.setattr(utils, "is_gguf_available", lambda: False)
    assert 'pip install "adafuse[gguf]"' in refused(UnsupportedModelError, model=str(gguf_path)).hint


def test_a_folder_with_only_gguf_files_says_which_option_names_one(gguf_path):
    error = refused(ModelNotFoundError, model=str(gguf_path.parent))
    assert f"'{gguf_path.parent}:{gguf_path.name}'" in error.hint


# --- adapters ---


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_tiny(tmp_path_factory.mktemp("base") / "base", tiny.byte_level())


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A LoRA adapter with weights that change what the base model says."""
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.add_adapter(lora)
    model.save_pretrained(folder)
    assert not (folder / "config.json").exists()
    return folder


@pytest.fixture
def own_copy(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")


def describe_adapter(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_an_adapter_writes_what_transformers_writes(adapter, base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.float64)
    with alone(model=str(adapter)) as ensemble:
        text = ensemble.generate(PROMPT, max_new_tokens=24).text
        assert ensemble.names == ("mine",)
    with alone(model=str(base)) as ensemble:
        assert ensemble.generate(PROMPT, max_new_tokens=24).text != text
    assert text == greedy(model, tokenizer, tokenizer(PROMPT)["input_ids"])


def test_an_adapter_beside_its_base_model_is_loaded_once(adapter, base, own_copy):
    shutil.copytree(base, own_copy, dirs_exist_ok=True)
    with alone(model=str(adapter)) as apart, alone(model=str(own_copy)) as together:
        assert apart.generate(PROMPT).text == together.generate(PROMPT).text


def test_an_adapter_has_window_end_tokens_and_template_of_its_base(adapter):
    config = MemberConfig(model=str(adapter))
    assert declared_window(config) == window_on_disk(config) == 512
    assert load_encoder(config).tokenizer.chat_template == tiny.CHATML
    assert load_member(config).describe()["end_tokens"] == ["<|im_end|>"]


def test_a_tokenizer_beside_the_adapter_is_the_members(own_copy):
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    tokenizer.save_pretrained(own_copy)
    assert load_encoder(MemberConfig(model=str(own_copy))).tokenizer.chat_template == tokenizer.chat_template


def test_an_adapter_finds_a_base_model_that_was_moved_with_it(base, own_copy):
    shutil.copytree(base, own_copy.parent / "base")
    describe_adapter(own_copy, base_model_name_or_path="../base")
    assert declared_window(MemberConfig(model=str(own_copy))) == 512


def test_a_base_model_may_be_one_that_ships_with_the_package(own_copy):
    describe_adapter(own_copy, base_model_name_or_path="small:aspen")
    assert window_on_disk(MemberConfig(model=str(own_copy))) == window_on_disk(MemberConfig(model="small:aspen"))


def test_a_missing_base_model_is_named_with_the_adapter(own_copy):
    describe_adapter(own_copy, base_model_name_or_path="/no/such/base")
    error = refused(ModelNotFoundError, model=str(own_copy))
    assert str(own_copy) in error.message
    assert "/no/such/base" in error.message
    assert "base_model_name_or_path" in error.hint
    describe_adapter(own_copy, base_model_name_or_path="no-such-org/base")
    assert "no-such-org/base" in refused(ModelNotFoundError, model=str(own_copy)).message


@pytest.mark.parametrize(
    "text", ["{}", "[]", "{", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 7}']
)
def test_an_adapter_that_does_not_name_its_base_model_is_refused(own_copy, text):
    (own_copy / "adapter_config.json").write_text(text, encoding="utf-8")
    assert "base_model_name_or_path" in refused(ModelLoadError, model=str(own_copy)).hint
    assert window_on_disk(MemberConfig(model=str(own_copy))) is None


def test_a_name_that_no_repository_can_have_is_refused():
    assert "no repository" in refused(ModelNotFoundError, model="no repository").message


def test_an_adapter_without_weights_is_refused(own_copy):
    (own_copy / "adapter_model.safetensors").unlink()
    assert "adapter_model" in refused(ModelLoadError, model=str(own_copy)).message


def test_without_the_package_of_adapters_the_error_says_what_to_install(adapter, monkeypatch):
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    assert 'pip install "adafuse[peft]"' in refused(UnsupportedModelError, model=str(adapter)).hint


def test_the_base_model_has_its_own_revision(adapter, own_copy):
    describe_adapter(own_copy, base_model_name_or_path="owner/base", revision="base-v2")
    config = MemberConfig(model=str(own_copy), revision="v1", model_kwargs={"token": "hf", "subfolder": ""})
    files = model_files.member_files(config)
    assert files.model.options == {"revision": "base-v2", "token": "hf"}
    assert files.adapter.options == {"revision": "v1", "token": "hf", "subfolder": ""}


# --- where files are ---

PLACES = {
    "revision": "v1",
    "subfolder": "inner",
    "token": "hf_x",
    "cache_dir": "/cache",
    "local_files_only": True,
    "force_download": False,
    "trust_remote_code": True,
    "code_revision": "c1",
}
READS = {
    "config": AutoConfig,
    "tokenizer": AutoTokenizer,
    "generation config": GenerationConfig,
    "model": AutoModelForCausalLM,
}


@pytest.fixture
def reads(monkeypatch):
    """Records the arguments of every read by transformers; nothing is read."""
    told = {}

    def record(name, answer):
        def from_pretrained(source, **options):
            told[name] = {"source": source, **options}
            return answer

        return from_pretrained

    answers = {"config": LlamaConfig(eos_token_id=2), "tokenizer": tiny.byte_level(), "generation config": None}
    for name, kind in READS.items():
        monkeypatch.setattr(kind, "from_pretrained", record(name, answers.get(name)))
    monkeypatch.setattr(huggingface, "Model", lambda model: model)
    monkeypatch.setattr(huggingface, "_check_model", lambda model: 1 / 0)
    monkeypatch.setattr(locations.Location, "file", lambda self, name: told.setdefault(f"file {name}", None))
    return told


@pytest.mark.parametrize("option", PLACES)
def test_file_options_apply_to_every_read_that_accepts_them(reads, option):
    with pytest.raises(ModelLoadError):
        load_member(MemberConfig(model="owner/name", model_kwargs={option: PLACES[option]}))
    runs_no_code = option in ("trust_remote_code", "code_revision")
    for name in READS:
        assert reads[name]["source"] == "owner/name"
        wanted = None if runs_no_code and name == "generation config" else PLACES[option]
        assert reads[name].get(option) == wanted, name


def test_fields_that_locate_files_equal_model_kwargs(reads):
    given = {"revision": "v1", "trust_remote_code": True}
    told = []
    for options in (given, {"model_kwargs": given}):
        with pytest.raises(ModelLoadError):
            load_member(MemberConfig(model="owner/name", **options))
        told.append({name: reads[name] for name in ("config", "tokenizer", "model")})
    assert told[0] == told[1]
    assert all(given.items() <= read.items() for read in told[0].values())


def test_variant_applies_to_weights_only(reads):
    with pytest.raises(ModelLoadError):
        load_member(MemberConfig(model="owner/name", model_kwargs={"variant": "fp16"}))
    assert reads["model"]["variant"] == "fp16"
    assert "variant" not in reads["tokenizer"]


def test_a_tokenizer_of_another_repository_has_revision_and_folder_of_its_own(reads):
    with pytest.raises(ModelLoadError):
        load_member(MemberConfig(model="owner/name", tokenizer="owner/other", model_kwargs=PLACES))
    told = reads["tokenizer"]
    assert told["source"] == "owner/other"
    assert not told.keys() & {"revision", "subfolder", "code_revision"}
    assert (told["token"], told["cache_dir"], told["trust_remote_code"]) == ("hf_x", "/cache", True)


@pytest.mark.parametrize(("name", "one", "other"), [("revision", "a", "b"), ("gguf_file", "a.gguf", "b.gguf")])
def test_a_field_and_model_kwargs_that_contradict_each_other_are_refused(name, one, other):
    error = refused(ConfigError, model="owner/name", **{name: one}, model_kwargs={name: other})
    assert name in error.message
    assert one in error.message
    assert other in error.message


def test_a_folder_inside_a_folder_is_read_as_a_whole(base, tmp_path):
    shutil.copytree(base, tmp_path / "inner")
    config = {"model": str(tmp_path), "model_kwargs": {"subfolder": "inner"}}
    assert declared_window(MemberConfig(**config)) == window_on_disk(MemberConfig(**config)) == 512
    with alone(model=str(base)) as plain, alone(**config) as inside:
        assert inside.generate(CHAT, max_new_tokens=12).text == plain.generate(CHAT, max_new_tokens=12).text
        assert inside.members[0].end_ids == plain.members[0].end_ids
