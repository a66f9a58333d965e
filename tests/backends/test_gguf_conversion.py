"""GGUF files are converted once, into folders that give what transformers reads from the file itself."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from adafuse_core import disk_cache
from adafuse_core.backends import gguf_conversion
from adafuse_core.backends.gguf_header import elements_by_type
from adafuse_core.errors import ModelLoadError, TokenizerMismatchError, UnsupportedModelError
from adafuse_core.member_config import MemberConfig
from adafuse_core.members.loader import load_member
from adafuse_core.members.tokenizers import load_encoder
from tests import tiny
from tests.gguf_file import write_gguf

PARTS = {"config", "tokenizer", "weights"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def path(written, tmp_path):
    """A file of this test alone."""
    return Path(shutil.copy(written, tmp_path / "tiny.gguf"))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "root", lambda: tmp_path / "adafuse")
    return tmp_path / "adafuse"


@pytest.fixture
def converted(caplog):
    """The parts that were converted since the last call."""
    caplog.set_level(logging.INFO, "adafuse_core")

    def parts():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return {line.split()[2] for line in lines if line.startswith("converting the ")}

    return parts


def load(path, **options):
    return gguf_conversion.load_model(path, {"dtype": "float32", **options})


def load_all(path):
    load_encoder(MemberConfig(model=str(path)))
    gguf_conversion.folder(path, gguf_conversion.CONFIG)
    return load(path)


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def direct(path, dtype="float32"):
    """The model as transformers reads it."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)


def folder_of(part, root):
    (folder,) = [
        file.parent
        for file in root.rglob("contents.json")
        if json.loads(file.read_text(encoding="utf-8"))["facts"]["part"] == part
    ]
    return folder


def kept(root):
    return sorted(path.name for path in (root / "gguf").glob("*") if path.is_dir()) if root.exists() else []


# --- what is converted ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_weights_are_those_that_transformers_unpacks_in_this_dtype(path, dtype, converted):
    for wanted in ({"config", "weights"}, set()):
        model = load(path, dtype=dtype)
        assert converted() == wanted
        assert model.dtype == getattr(torch, dtype)
        assert same_weights(model, direct(path, dtype))
        assert getattr(model.config, "quantization_config", None) is None


def test_tokenizer_and_config_are_those_that_transformers_reads(path, converted):
    for wanted in ({"config", "tokenizer"}, set()):
        tokenizer = load_encoder(MemberConfig(model=str(path))).tokenizer
        assert converted() == wanted
    read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert type(tokenizer) is type(read)
    assert tokenizer.get_vocab() == read.get_vocab()
    assert tokenizer.backend_tokenizer.to_str() == read.backend_tokenizer.to_str()
    assert (tokenizer.chat_template, tokenizer.special_tokens_map) == (read.chat_template, read.special_tokens_map)
    for part in (gguf_conversion.CONFIG, gguf_conversion.TOKENIZER):
        with gguf_conversion.opened(path, part) as (source, options):
            config = AutoConfig.from_pretrained(source, **options)
        assert config.to_diff_dict() == AutoConfig.from_pretrained(path.parent, gguf_file=path.name).to_diff_dict()


def test_a_second_start_reads_no_part_of_the_file(path, converted):
    for wanted in (PARTS, set()):
        member = load_member(MemberConfig(model=str(path)))
        assert member.describe()["end_tokens"] == ["<|im_end|>"]
        member.close()
        assert converted() == wanted


def test_counting_tokens_does_not_unpack_weights(path, converted):
    load_encoder(MemberConfig(model=str(path))).count_tokens("How many?")
    assert "weights" not in converted()


def test_automatic_dtype_is_that_of_the_file_and_bfloat16_if_it_is_quantized(path, tmp_path):
    assert load(path, dtype="auto").dtype == torch.bfloat16
    kinds = {"float32": (0,), "float16": (0, 1), "bfloat16": (0, 30)}
    for dtype, kind in kinds.items():
        floats = write_gguf(tmp_path / f"{dtype}.gguf", weights=gguf.GGMLQuantizationType(kind[-1]))
        assert tuple(sorted(elements_by_type(floats))) == kind
        assert load(floats, dtype="auto").dtype == getattr(torch, dtype)


def test_files_beside_the_gguf_file_are_not_read(path):
    other = tiny.byte_level(380)
    other.chat_template = "{{ messages }}"
    other.save_pretrained(path.parent)
    tokenizer = load_encoder(MemberConfig(model=str(path))).tokenizer
    assert len(tokenizer) != len(other)
    assert tokenizer.chat_template == tiny.CHATML


def test_options_of_loading_apply_to_the_converted_model(path):
    model = load(path, attn_implementation="eager", device_map="cpu")
    assert model.config._attn_implementation == "eager"


def test_the_tokenizer_of_a_gguf_file_may_be_used_as_its_tokenizer_json(path):
    config = MemberConfig(model=str(path), tokenizer_class="file")
    assert load_encoder(config).count_tokens("some text") == load_encoder(MemberConfig(model=str(path))).count_tokens(
        "some text"
    )


def test_a_tokenizer_that_does_not_survive_its_conversion_is_refused(path, tmp_path, monkeypatch):
    tiny.metaspace().save_pretrained(tmp_path / "other")
    read = AutoTokenizer.from_pretrained

    def as_other(source, **options):
        return read(source if options else tmp_path / "other", **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", as_other)
    with pytest.raises(TokenizerMismatchError):
        load_encoder(MemberConfig(model=str(path)))


def test_a_quantization_config_of_gguf_is_left_to_transformers(path, root):
    for config in ({"quant_method": "gguf", "dequantize": True}, transformers.GgufConfig(dequantize=True)):
        model = load(path, quantization_config=config)
        assert same_weights(model, direct(path))
    assert kept(root) == []


def test_nothing_is_printed(path, capfd, monkeypatch):
    load_member(MemberConfig(model=str(path))).close()
    monkeypatch.setattr(disk_cache, "_lock", lambda path: None)
    load_member(MemberConfig(model=str(path), dtype="float32")).close()
    assert capfd.readouterr() == ("", "")


# --- what is kept ---


def test_each_dtype_and_each_content_has_its_own_weights(path, tmp_path, converted):
    load(path)
    load(path, dtype="bfloat16")
    assert "weights" in converted()
    shutil.copy(path, tmp_path / "copy.gguf")
    assert same_weights(load(tmp_path / "copy.gguf"), load(path))
    assert converted() == set()  # the name does not matter
    write_gguf(path, seed=1)
    assert same_weights(load(path), direct(path))
    assert converted() == {"config", "weights"}


@pytest.mark.parametrize("package", ["adafuse", "transformers", "gguf"])
def test_another_version_of_a_library_converts_again(path, package, monkeypatch, converted):
    load(path)
    converted()
    versions = disk_cache.versions
    monkeypatch.setattr(disk_cache, "versions", lambda *names: versions(*names) | {package: "0.0"})
    load(path)
    assert "weights" in converted()


def test_a_file_is_hashed_once(path, monkeypatch):
    load(path)
    monkeypatch.setattr(gguf_conversion, "_examined", None)
    load(path)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other bytes", "no list"])
@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_damaged_folder_is_converted_again(path, root, part, damage, converted):
    load_all(path)
    folder = folder_of(part, root)
    names = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}
    file = folder / ("contents.json" if damage == "no list" else names[part])
    if damage in ("missing", "no list"):
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[:-9] if damage == "truncated" else b"\0" * len(content))
    converted()
    assert same_weights(load_all(path), direct(path))
    assert converted() == {part}


@pytest.mark.skipif(os.name != "posix", reason="needs a device file")
def test_a_folder_that_is_not_writable_is_logged_and_the_model_loads(path, monkeypatch, caplog):
    monkeypatch.setattr(disk_cache, "root", lambda: Path("/dev/null/adafuse"))
    member = load_member(MemberConfig(model=str(path)))
    member.close()
    assert "can't keep" in caplog.text
    assert same_weights(load(path, dtype="float64"), direct(path, "float64"))


def test_without_room_on_the_disk_nothing_is_written(path, root, monkeypatch, caplog):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage(where)._replace(free=1000))
    assert same_weights(load(path), direct(path))
    assert "GB are free" in caplog.text
    assert kept(root) == []


def test_a_disk_that_becomes_full_leaves_no_part_of_a_folder(path, root, monkeypatch, caplog):
    def write_a_part(self, folder, **options):
        (Path(folder) / "model.safetensors").write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "save_pretrained", write_a_part)
    assert same_weights(load(path), direct(path))
    assert "No space left" in caplog.text
    assert kept(root) == [folder_of("config", root).name]


def test_what_a_killed_process_left_is_removed(path, root):
    load(path)
    folder = folder_of("weights", root)
    left = folder.rename(folder.with_name(f"{folder.name}.12345678.part"))
    load(path)
    assert not left.exists()
    assert folder.exists()


def test_threads_convert_a_file_once(path, converted, caplog):
    models = []
    threads = [
        threading.Thread(target=lambda: models.append(load_encoder(MemberConfig(model=str(path))))) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("converting the tokenizer") for line in lines) == 1
    assert len(models) == 2


# --- what is refused ---


def test_a_piece_of_a_model_is_refused_whatever_its_name(path):
    write_gguf(path, pieces=2)
    with pytest.raises(UnsupportedModelError, match="one of 2 pieces"):
        load(path)


def test_a_file_without_all_weights_is_refused(path, root):
    write_gguf(path, left_out="blk.1.ffn_up")
    with pytest.raises(ModelLoadError, match=r"mlp\.up_proj") as caught:
        load(path)
    assert caught.value.hint
    assert "weights" not in str(kept(root))


def test_a_file_that_is_no_model_is_refused(path):
    path.write_bytes(b"GGU")
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        load(path)
