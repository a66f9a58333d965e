"""`adafuse doctor` with the small models, with broken members, and with the facts of other machines."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from adafuse_core import EnsembleConfig, disk_cache
from adafuse_core.backends import quantization
from adafuse_core.config import default_config
from adafuse_core.members import registry
from adafuse_core.members.model_files import source
from adafuse_integrations.cli.checkup import installation, machine, members
from adafuse_integrations.cli.checkup.hints import NOTE, PROBLEM, WARNING, hints, is_usable
from adafuse_integrations.cli.checkup.installation import MISSING, OUTSIDE, Package
from adafuse_integrations.cli.checkup.machine import Gpu, Memory
from adafuse_integrations.cli.checkup.members import MemberFacts
from adafuse_integrations.cli.checkup.report import report, surroundings
from adafuse_integrations.cli.main import main
from tests import tiny

SECRET = "hf_notToBeShown"


@pytest.fixture(scope="module")
def healthy():
    """The report of the two small models, on a machine without anything to complain about."""
    found = report(default_config(), surroundings(), load=True)
    around = replace(
        found.surroundings,
        machine=replace(found.surroundings.machine, torch_build="CPU", nvidia_driver=False, torch_threads=1),
    )
    return replace(found, surroundings=around, memory_after=(Memory(device="cpu", free=9, total=10),))


def doctor(capsys, *arguments):
    """Exit status, standard output and standard error."""
    status = main(["doctor", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def shown_as_json(capsys, *arguments):
    status, out, _ = doctor(capsys, "--json", *arguments)
    return status, json.loads(out)


def on(found, **machine_facts):
    """The same report on another machine."""
    around = found.surroundings
    return replace(found, surroundings=replace(around, machine=replace(around.machine, **machine_facts)))


def with_member(found, **facts):
    """The same report with a first member of which other facts are known."""
    description = {**found.members[0].description, **facts.pop("description", {})}
    return replace(found, members=(replace(found.members[0], description=description, **facts), found.members[1]))


def only(found):
    """The only hint."""
    (hint,) = hints(found)
    return hint


def config(*models, **options):
    return EnsembleConfig(members=list(models), **options)


def found_without_loading(*models, **options):
    return report(config(*models, **options), surroundings(), load=False)


def about(found, name):
    return [hint for hint in hints(found) if hint.about == name]


# The command


def test_a_healthy_ensemble_has_no_hints(healthy):
    assert hints(healthy) == []


def test_the_report_shows_packages_machine_members_and_ensemble(capsys):
    status, out, _ = doctor(capsys)
    assert status == 0
    text = " ".join(out.split())
    for shown in (
        f"torch {torch.__version__}",
        f"built for {machine.machine().torch_build}, threads: 1",
        f"results {disk_cache.root()}",
        "downloads off (HF_HUB_OFFLINE)",
        "Member aspen model small:aspen runs on cpu in float32, 1.8 million parameters",
        "KV store tree (it reproduces fresh passes",
        "context window 2,048 tokens",
        "prefix cache on",
        "end tokens <|endoftext|> <|im_end|>",
        "chat template yes, shows tools, calls in the format hermes",
        "thought tags <think> ... </think>",
        "tools the chat templates of all members show the tools",
    ):
        assert shown in text
    assert "member 'aspen'" not in out  # the log of loading is on standard error


def test_json_has_the_same_facts_and_nothing_else_on_standard_output(capsys):
    status, found = shown_as_json(capsys)
    assert status == 0
    assert found["usable"]
    assert [member["name"] for member in found["members"]] == ["aspen", "birch"]
    assert found["members"][0]["description"]["dtype"] == "float32"
    assert {"packages", "machine", "memory", "storage", "members", "together", "hints"} <= set(found)


def test_without_loading_only_files_are_read(capsys, monkeypatch):
    monkeypatch.setattr(members, "loaded", None)
    status, out, _ = doctor(capsys, "--no-load")
    assert status == 0
    assert "not loaded, on disk" in out
    assert "2,048 tokens" in out


def test_options_of_members_and_files_are_used(capsys, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("members:\n  - model: small:birch\n    name: b\n    prefix_cache: false\n", encoding="utf-8")
    status, out, _ = doctor(capsys, "--config", str(path), "--dtype", "float64")
    assert status == 0
    assert "Member b" in out
    assert "float64" in out
    assert "prefix cache off" in out


def test_a_broken_member_does_not_hide_the_others(capsys):
    status, out, _ = doctor(capsys, "--models", "/no/such/folder", "small:birch")
    assert status == 1
    text = " ".join(out.split())
    assert "problem folder: there is no folder '/no/such/folder' check the path" in text
    assert "Member birch model small:birch runs on cpu" in text


def test_a_setting_that_does_not_work_is_explained_in_the_words_of_the_library(capsys):
    status, found = shown_as_json(capsys, "--models", "small:aspen", "--cuda-graphs")
    assert status == 1
    (hint,) = [hint for hint in found["hints"] if hint["about"] == "aspen"]
    assert hint["text"].startswith("cuda_graphs=True does not work with 'small:aspen'")
    assert hint["cure"] == "leave it at its default"


def test_wrong_options_are_errors(capsys):
    status, out, err = doctor(capsys, "--models", "small:aspen", "--dtype", "fp32")
    assert status == 2
    assert "dtype='fp32'" in err
    assert not out


@pytest.mark.parametrize("width", ["60", "120"])
def test_no_line_is_wider_than_the_terminal_and_colours_can_be_switched_off(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = doctor(capsys, "--models", "small:aspen", "/no/such/folder")
    assert max(map(len, out.splitlines())) <= int(width)
    assert "\x1b" not in out
    assert "llama-index-retrievers-bm25" in out


def test_names_that_look_like_markup_stay_as_they_are(capsys):
    _, out, _ = doctor(capsys, "--no-load", "--models", "/no/[red]folder[/b]")
    assert "/no/[red]folder[/b]" in out


def test_secrets_are_not_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    path = tmp_path / "two.yaml"
    path.write_text(
        "members:\n  - model: nobody/nothing\n    model_kwargs: {token: " + SECRET + "}\n"
        "member_defaults: {model_kwargs: {token: " + SECRET + "}}\n",
        encoding="utf-8",
    )
    for form in ((), ("--json",)):
        status, out, err = doctor(capsys, "--config", str(path), *form)
        assert status == 1
        assert "nobody/nothing" in out
        assert SECRET not in out + err


def test_a_secret_in_an_error_of_another_library_is_hidden(monkeypatch):
    def refuse(config, find):
        raise OSError(f"403 for https://user:{SECRET}@host")

    monkeypatch.setattr(members, "member_files", refuse)
    member = config({"model": "a/b", "model_kwargs": {"token": SECRET}}).members[0]
    assert members.on_disk(member).error == "OSError: 403 for https://user:(hidden)@host"


def test_no_model_stays_loaded(tmp_path):
    own = shutil.copytree(source("small:aspen"), tmp_path / "own")  # no other test has loaded it
    before = registry.loaded()
    report(config(own, member_defaults={"dtype": "float64"}), surroundings(), load=True)
    assert registry.loaded() == before


# Hints that real conditions provoke


def test_hint_for_a_member_without_chat_template(tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models["bytes"], tmp_path / "plain")
    (folder / "chat_template.jinja").unlink()
    found = report(config(folder), surroundings(), load=True)
    (hint,) = about(found, "plain")
    assert hint.level == WARNING
    assert "no chat template" in hint.text
    assert found.together.tools.startswith("no tool calling")
    assert about(found_without_loading(folder), "plain") == [hint]


def test_hint_for_a_template_that_shows_no_tools(tiny_models):
    found = report(config(tiny_models["bytes"]), surroundings(), load=True)
    (hint,) = about(found, "bytes")
    assert hint.level == NOTE
    assert "shows no tools" in hint.text
    assert found.together.tools.startswith("a system message describes the tools")


def mamba(vocab):
    return transformers.MambaConfig(vocab_size=vocab, hidden_size=32, num_hidden_layers=2, state_size=4)


def test_hint_for_the_slower_stores(tmp_path):
    folder = tiny.save_tiny(tmp_path / "recurrent", tiny.byte_level(), mamba)
    copying = {"model": "small:aspen", "attn_implementation": "eager"}
    found = report(config(folder, copying), surroundings(), load=True)
    texts = [
        (hint.level, hint.about, hint.text.partition(",")[0], "no tree" in hint.text)
        for hint in hints(found)
        if "KV store" in hint.text
    ]
    assert [(level, name) for level, name, _, _ in texts] == [(WARNING, "recurrent"), (NOTE, "aspen")]
    assert all(text.startswith("uses the KV store") and why for _, _, text, why in texts)
    chosen = report(config({**copying, "kv_store": "fork"}), surroundings(), load=True)
    assert about(chosen, "aspen") == []


def test_hint_for_float16_on_a_cpu():
    found = report(config("small:aspen", member_defaults={"dtype": "float16"}), surroundings(), load=True)
    (hint,) = about(found, "aspen")
    assert "float16 on a CPU" in hint.text


def test_hint_for_kv_room_below_the_context_window():
    found = report(config("small:aspen", member_defaults={"max_kv_tokens": 500}), surroundings(), load=True)
    (hint,) = about(found, "aspen")
    assert "holds 500 tokens, its context window is 2,048" in hint.text


def test_hint_for_members_of_very_different_size(tiny_models):
    found = report(config(tiny_models["bytes"], "small:aspen"), surroundings(), load=True)
    (hint,) = about(found, "members")
    assert "'aspen' has " in hint.text


def test_hint_for_a_strategy_that_the_members_do_not_support(healthy, monkeypatch):
    from adafuse_core import ConfigError
    from adafuse_core.strategies.beam import Beam

    def refuse(strategy, loaded):
        raise ConfigError("needs another backend", hint="use local")

    monkeypatch.setattr(Beam, "check_abilities", refuse)
    facts = members.together(default_config(), healthy.members)
    hint = only(replace(healthy, together=facts))
    assert (hint.level, hint.text, hint.cure) == (PROBLEM, "needs another backend", "use local")


def test_hint_for_a_model_that_is_not_on_disk_while_downloads_are_off():
    found = found_without_loading("nobody/nothing")
    assert found.surroundings.storage.offline
    (hint,) = about(found, "nothing")
    assert hint.level == PROBLEM
    assert "HF_HUB_OFFLINE" in hint.text
    online = replace(found.surroundings, storage=replace(found.surroundings.storage, offline=False))
    (hint,) = about(replace(found, surroundings=online), "nothing")
    assert hint.level == NOTE
    assert "download" in hint.text


def test_a_model_that_can_not_be_downloaded_is_not_tried(monkeypatch):
    def reported():
        (hint,) = about(report(config("nobody/nothing"), surroundings(), load=True), "nothing")
        assert hint.level == PROBLEM
        return hint.text

    assert reported() == "'nobody/nothing' is not on disk, and downloads are switched off (HF_HUB_OFFLINE)"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 can't be reached" in reported()


def test_a_folder_without_weights_is_a_problem_even_if_nothing_is_loaded(tmp_path):
    folder = shutil.copytree(source("small:aspen"), tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    (hint,) = about(found_without_loading(folder), "empty")
    assert hint.level == PROBLEM
    assert "has no weights" in hint.text


def test_a_model_with_unusual_files_is_loaded(tmp_path):
    folder = shutil.copytree(source("small:aspen"), tmp_path / "variant")
    (folder / "model.safetensors").rename(folder / "model.fp32.safetensors")
    member = {"model": str(folder), "model_kwargs": {"variant": "fp32"}}
    assert not about(found_without_loading(member), "variant")
    assert not about(report(config(member), surroundings(), load=True), "variant")


def test_hint_for_a_missing_package_of_a_quantized_model(tmp_path, monkeypatch):
    monkeypatch.setitem(quantization.PACKAGES, "gptq", ("no-such-package",))
    folder = shutil.copytree(source("small:aspen"), tmp_path / "quantized")
    declared = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    declared["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(declared), encoding="utf-8")
    (hint,) = about(found_without_loading(folder), "quantized")
    assert (hint.level, hint.cure) == (PROBLEM, "pip install no-such-package")
    option = {"model": "small:aspen", "quantization_config": {"quant_method": "gptq"}}
    (hint,) = about(found_without_loading(option), "aspen")
    assert hint.cure == "pip install no-such-package"


def test_hint_for_the_missing_packages_of_gguf_files_and_adapters(tmp_path, monkeypatch):
    installed = installation._version
    monkeypatch.setattr(installation, "_version", lambda name: None if name in ("gguf", "peft") else installed(name))
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = {"base_model_name_or_path": str(source("small:aspen"))}
    (adapter / "adapter_config.json").write_text(json.dumps(base), encoding="utf-8")
    found = found_without_loading(tmp_path / "x.gguf", adapter)
    assert [hint.cure for hint in about(found, "adapter")] == ['pip install "adafuse[peft]"']
    assert 'pip install "adafuse[gguf]"' in [hint.cure for hint in about(found, "x")]


def test_hint_for_a_folder_of_results_that_is_not_writable(healthy, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file"))
    hint = only(replace(healthy, surroundings=replace(healthy.surroundings, storage=surroundings().storage)))
    assert hint.about == "results"
    assert "not writable" in hint.text


def test_results_on_disk_are_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    for number in range(3):
        disk_cache.write_json("verdicts", {"number": number}, {"tested": True})
    (kind,) = surroundings().storage.results
    assert (kind.name, kind.entries) == ("verdicts", 3)
    assert kind.size_bytes > 0
    assert surroundings().storage.writable


def test_more_threads_than_cores_are_reported(healthy):
    hint = only(on(healthy, cores=2, torch_threads=8))
    assert "8 threads on 2 cores" in hint.text
    assert hint.cure == "set OMP_NUM_THREADS=2"


# Packages


def test_versions_are_compared_with_the_metadata_of_this_package(monkeypatch):
    requires = [
        "torch>=999",
        "no-such-thing>=1",
        "numpy>=1",
        "another-missing>=2; extra == 'large'",
        "rich>=1; extra == 'large'",
        "another-missing>=2; extra == 'small'",
        "pytest>=1; extra == 'dev'",
        "only-elsewhere>=1; sys_platform == 'nowhere'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(installation, "_extras", lambda: ["large", "small"])
    found = {package.name: package for package in installation.packages()}
    assert found["torch"].state == OUTSIDE
    assert found["no-such-thing"].state == MISSING
    assert found["no-such-thing"].required
    assert found["numpy"].state == "ok"
    assert found["another-missing"].install == 'pip install "adafuse[small]"'
    assert not found["another-missing"].required
    assert not {"pytest", "only-elsewhere"} & set(found)


def test_all_extras_for_users_are_in_the_table():
    assert {"torch", "llguidance", "gguf", "peft", "langchain-core", "llama-index-core", "torchao"} <= {
        package.name for package in installation.packages()
    }


def test_hints_for_packages(healthy):
    package = Package(name="x", version=None, wanted=">=2", purpose="", state=MISSING, install="pip install x")

    def hint_for(**changes):
        around = replace(healthy.surroundings, packages=(replace(package, **changes),))
        return hints(replace(healthy, surroundings=around))

    (hint,) = hint_for()
    assert (hint.level, hint.about, hint.cure) == (PROBLEM, "x", "pip install x")
    (hint,) = hint_for(version="1.0", state=OUTSIDE)
    assert (hint.level, hint.text) == (WARNING, "version 1.0 is installed, adafuse supports >=2")
    assert hint_for(purpose="extra x") == []  # no member needs it
    (hint,) = hint_for(name="adafuse")
    assert (hint.level, hint.about) == (WARNING, "adafuse")


def test_a_source_tree_without_metadata_is_reported_and_usable(monkeypatch):
    monkeypatch.setattr(installation, "_version", lambda name: None)
    found = found_without_loading("small:aspen")
    assert [hint.about for hint in hints(found) if hint.level == WARNING] == ["adafuse"]
    assert is_usable(hints(found))


# Facts of other machines


def test_hint_for_a_cuda_build_without_a_gpu(healthy):
    hint = only(on(healthy, torch_build="CUDA 12.8"))
    assert hint.level == NOTE
    hint = only(on(healthy, torch_build="CUDA 12.8", nvidia_driver=True, gpu_error="the driver is too old"))
    assert hint.level == WARNING
    assert "finds no GPU: the driver is too old" in hint.text


def test_hint_for_a_cpu_build_beside_a_driver(healthy):
    assert "built for CPUs only" in only(on(healthy, nvidia_driver=True)).text


def test_a_torch_that_can_not_be_imported_is_a_problem_and_nothing_is_loaded(healthy, monkeypatch):
    around = on(healthy, torch_error="ImportError: libcudart.so").surroundings
    monkeypatch.setattr(members, "loaded", None)
    found = report(default_config(), around, load=True)
    hint = next(hint for hint in hints(found) if hint.about == "torch")
    assert (hint.level, hint.text) == (PROBLEM, "can't be imported: ImportError: libcudart.so")


def test_the_error_of_importing_torch_is_a_fact(monkeypatch):
    monkeypatch.setitem(machine.__dict__, "_gpus", None)  # never reached
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    found = machine.machine()
    assert found.torch_build is None
    assert "torch" in found.torch_error
    assert machine.memory() == ()


def test_hint_for_bfloat16_that_is_emulated(healthy):
    bfloat16 = with_member(healthy, description={"dtype": "bfloat16"})
    assert hints(on(bfloat16, cpu_bfloat16=True)) == []
    assert hints(on(bfloat16, cpu_bfloat16=None)) == []
    assert 'dtype="float32"' in only(on(bfloat16, cpu_bfloat16=False)).cure
    on_gpu = with_member(healthy, description={"dtype": "bfloat16", "device": "cuda:0"})
    old, new = (Gpu(device="cuda:0", name="a GPU", bfloat16=native) for native in (False, True))
    assert 'dtype="float16"' in only(on(on_gpu, gpus=(old,), torch_build="CUDA 12", cpu_bfloat16=True)).cure
    assert hints(on(on_gpu, gpus=(new,), torch_build="CUDA 12", cpu_bfloat16=False)) == []


def test_hint_for_a_store_that_half_precision_rules_out(healthy):
    cache = "prefill, recomputing the context at every step: distributions differ (no tree: they differ)"
    hint = only(with_member(healthy, description={"cache": cache, "dtype": "float16", "device": "cuda:0"}))
    assert hint.level == WARNING
    assert hint.text.endswith(": no tree: they differ")
    assert hint.cure.startswith('try dtype="float32"')


def test_hint_for_scarce_memory(healthy):
    scarce = Memory(device="cuda:0", free=2 * 10**9, total=10**10)
    hint = only(replace(healthy, memory_after=(scarce,)))
    assert "2.0 of 10.0 GB of cuda:0 are free" in hint.text


def test_a_member_that_is_only_named_has_no_hints_about_how_it_runs(healthy):
    assert hints(replace(healthy, members=(MemberFacts(name="a", model="a", on_disk=True),))) == []


def test_problems_come_first(healthy):
    broken = with_member(on(healthy, nvidia_driver=True), error="it is broken")
    assert [hint.level for hint in hints(broken)] == [PROBLEM, WARNING]
