"""Members that load the same weights share them in memory, and answer as each of them does alone."""

from __future__ import annotations

import gc
import itertools
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from adafuse_core import Ensemble, MemberConfig, TextDelta, small_models
from adafuse_core.backends.locations import Location
from adafuse_core.backends.shared_weights import SharedWeights
from adafuse_core.errors import ConfigError, ModelLoadError, ModelNotFoundError
from adafuse_core.members import registry
from adafuse_core.members.loader import load_member
from tests import tiny
from tests.agreement import difference
from tests.oracle import OracleEnsemble, OracleMember

PROMPTS = ["The capital of Peru is", [{"role": "user", "content": "What is the capital of Peru?"}]]
SETTINGS = {"tau": 0.7, "max_words": 2, "branches": 3}
NAMES = ("base", "one", "two")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model and two adapters for it."""
    folder = tmp_path_factory.mktemp("tiny")
    return with_adapters(tiny.save_tiny(folder / "base", tiny.byte_level()))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A trained model and two adapters for it."""
    return with_adapters(shutil.copytree(small_models.path("aspen"), tmp_path_factory.mktemp("small") / "base"))


def with_adapters(base):
    """Folders of a model and of two adapters, which have tokenizers, since the reference implementation reads them."""
    folders = {name: base.parent / name for name in NAMES}
    for seed, name in enumerate(NAMES[1:]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        model.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules="all-linear", init_lora_weights=False))
        model.save_pretrained(folders[name])
        for file in chain.from_iterable(map(base.glob, ("*token*", "*.jinja", "generation_config.json"))):
            shutil.copy(file, folders[name])
    return folders


def member(folders, name, **options):
    """The base model, an adapter as an option of it, or an adapter that names it."""
    options = {"dtype": "float64", "name": name, **options}
    if name == "one":
        return MemberConfig(model=str(folders["base"]), adapter=str(folders[name]), **options)
    return MemberConfig(model=str(folders[name]), **options)


def together(folders, names=NAMES, **options):
    return Ensemble(members=[member(folders, name, **options) for name in names], strategy="adafuse", **SETTINGS)


def alone(folders, name):
    return together(folders, [name])


def reference(folders, names):
    return OracleEnsemble([OracleMember(folders[name], name=name) for name in names], **SETTINGS)


def module(ensemble, index=0):
    return ensemble.members[index].backend.model.module


def addresses(model):
    return {tensor.data_ptr(): tensor.nbytes for tensor in chain(model.parameters(), model.buffers())}


# --- answers ---


@pytest.mark.parametrize(("kind", "kv_store"), [("small", "tree"), ("folders", "fork"), ("folders", "prefill")])
def test_members_with_one_base_answer_as_models_of_their_own(kind, kv_store, request, count):
    """Requests of all kinds run at the same time: each member alone, pairs, and all three."""
    folders = request.getfixturevalue(kind)
    groups = [names for size in (1, 2, 3) for names in itertools.combinations(NAMES, size)]
    asked = list(itertools.product(groups, PROMPTS))

    def answer(names, prompt):
        with together(folders, names, kv_store=kv_store) as ensemble:
            return ensemble.generate(prompt, max_new_tokens=8)

    with together(folders, kv_store=kv_store).load(), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda each: answer(*each), asked))
    expected = [reference(folders, names).answer(prompt, max_new_tokens=8) for names, prompt in asked]
    assert len({answer.text for answer in answers}) > len(PROMPTS)
    differing = [difference(got, wanted) for got, wanted in zip(answers, expected, strict=True)]
    assert not any(differing), next(filter(None, differing))
    count("generations equal to the oracle", len(answers), at_least=14)


def test_streams_take_turns_while_a_member_is_closed_and_another_one_loads(folders):
    prompt = PROMPTS[0]
    texts = {}
    for name in NAMES:
        with alone(folders, name) as ensemble:
            texts[name] = ensemble.generate(prompt, max_new_tokens=12).text
    assert len(set(texts.values())) == 3
    one, two = alone(folders, "one"), alone(folders, "two")
    streams = [each.stream(prompt, max_new_tokens=12) for each in (one, two)]
    written = ["", ""]
    for _ in range(4):
        for index, stream in enumerate(streams):
            written[index] += text_of(next(stream))
    one.close()
    assert texts["one"].startswith(written[0])
    with alone(folders, "base") as base:
        assert base.generate(prompt, max_new_tokens=12).text == texts["base"]
        written[1] += "".join(map(text_of, streams[1]))
    assert written[1] == texts["two"]
    with alone(folders, "one") as again:
        assert again.generate(prompt, max_new_tokens=12).text == texts["one"]
    two.close()


def text_of(event):
    return event.text if isinstance(event, TextDelta) else ""


def test_members_load_while_another_one_answers(folders):
    with alone(folders, "two") as ensemble:
        expected = ensemble.generate(PROMPTS[0], max_new_tokens=8).text
        loading = threading.Thread(target=lambda: [alone(folders, "one").load().close() for _ in range(2)])
        loading.start()
        answers = []
        while loading.is_alive():
            answers.append(ensemble.generate(PROMPTS[0], max_new_tokens=8).text)
        loading.join()
    assert set(answers) == {expected}


# --- memory ---


def test_members_with_one_base_hold_its_tensors_once(folders):
    with together(folders) as ensemble:
        held = [addresses(module(ensemble, index)) for index in range(3)]
        base, added = held[0], [own.keys() - held[0].keys() for own in held[1:]]
        assert all(base.keys() < own.keys() for own in held[1:])
        assert not added[0] & added[1]
        adapters = sum(own[address] for own, new in zip(held[1:], added, strict=True) for address in new)
        total = sum((held[0] | held[1] | held[2]).values())
    assert total == sum(base.values()) + adapters
    saved = sum(path.stat().st_size for name in NAMES[1:] for path in folders[name].glob("adapter_model*"))
    assert adapters < 2.1 * saved  # the files are in float32


def test_a_base_is_freed_with_its_last_member_and_an_adapter_with_its_own(folders):
    ensembles = [alone(folders, name).load() for name in NAMES]
    gc.collect()
    weights = weakref.ref(module(ensembles[0]).get_input_embeddings().weight)
    layers = [weakref.ref(module(each).model.layers[0].self_attn.q_proj) for each in ensembles]
    for index, each in enumerate(ensembles):
        assert weights() is not None
        each.close()
        gc.collect()
        assert [layer() is not None for layer in layers] == [number > index for number in range(3)]
    assert weights() is None


def test_options_of_the_member_but_not_of_the_weights_may_differ(folders):
    shared = [{"chat_template": "{{ messages }}"}, {"kv_store": "fork"}, {"max_kv_tokens": 5000}, {"weight": 2.0}]
    own = [{"dtype": "float32"}, {"attn_implementation": "eager"}, {"model_kwargs": {"use_cache": False}}]
    with alone(folders, "base") as ensemble:
        weights = module(ensemble).get_input_embeddings().weight
        for options in (*shared, *own):
            with together(folders, ["two"], **options) as other:
                assert (module(other).get_input_embeddings().weight is weights) == (options in shared), options


def test_attention_functions_of_members_with_one_base_are_independent(folders):
    members = [
        member(folders, name, kv_store=store) for name, store in zip(NAMES, ("tree", "fork", "tree"), strict=True)
    ]
    with Ensemble(members=members) as ensemble:
        ensemble.generate(PROMPTS[0], max_new_tokens=4)
        kinds = [module(ensemble, index).config._attn_implementation for index in range(3)]
    assert kinds[0] == kinds[2] != kinds[1]


def test_a_model_that_was_saved_again_is_another_model(tmp_path):
    texts = []
    for seed in (0, 1):
        folder = tiny.save_tiny(tmp_path / "mine", tiny.byte_level(), seed=seed)
        kept = Ensemble(members=[MemberConfig(model=str(folder), context_window=100 + seed)])
        texts.append((kept, kept.generate("The quick", max_new_tokens=8).text))
    assert texts[0][1] != texts[1][1]
    for kept, _ in texts:
        kept.close()


def test_members_tell_which_weights_they_use(folders):
    with together(folders) as ensemble:
        facts = [each["weights"] for each in ensemble.describe()["members"]]
    base, one, two = (str(folders[name]) for name in NAMES)
    assert facts == [base, f"{base} with adapter {one}", f"{base} with adapter {two}"]


class Loaded(Location):
    """A location whose model is in memory."""

    def load_model(self, more):
        model = LlamaForCausalLM(tiny.llama(9))
        if self.source in ("8bit", "4bit"):
            setattr(model, f"is_loaded_in_{self.source}", True)
        elif self.source == "offloaded":
            model.to("meta")
        elif self.source == "odd":
            model.lock = threading.Lock()
        return model


@pytest.mark.parametrize(
    ("source", "reason"),
    [("8bit", "first pass"), ("4bit", "first pass"), ("offloaded", "offloaded"), ("odd", "pickle")],
)
def test_a_model_that_can_not_be_shared_is_loaded_for_each_member(source, reason, caplog):
    shared = SharedWeights()
    with caplog.at_level("INFO", "adafuse_core"):
        models = [shared.load(Loaded(source=source, options={}), {}) for _ in range(2)]
    assert models[0].get_input_embeddings().weight is not models[1].get_input_embeddings().weight
    assert not any(map(shared.is_shared, models))
    assert reason in caplog.text


def test_a_twin_has_all_tensors_of_the_original():
    shared = SharedWeights()
    one, two = (shared.load(Loaded(source="plain", options={}), {"dtype": "auto"}) for _ in range(2))
    assert one is not two
    assert one.config is not two.config
    assert all(a is b for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert shared.is_shared(one)
    assert (
        shared.load(Loaded(source="plain", options={}), {"dtype": "float64"}).lm_head.weight is not one.lm_head.weight
    )


# --- options ---


def test_an_adapter_names_its_member(folders):
    base = str(folders["base"])
    assert MemberConfig(model=base, adapter="owner/poet/").label == "poet"
    assert MemberConfig(model=base, adapter=folders["one"]).label == "one"
    assert MemberConfig(model=base, adapter="owner/poet", name="mine").label == "mine"
    assert MemberConfig(model=base, adapter="a/b").load_key != MemberConfig(model=base).load_key
    with pytest.raises(ConfigError, match="adapter"):
        MemberConfig(model=base, adapter="")
    with pytest.raises(ConfigError, match="mapping of one member"):
        Ensemble(members=[base], member_defaults={"adapter": "a/b"})


def refused(kind, **options):
    with pytest.raises(kind) as caught:
        load_member(MemberConfig(name="mine", **options))
    assert caught.value.member == "mine"
    assert caught.value.hint
    return caught.value.message


def test_adapters_that_can_not_be_used_are_refused(folders, tmp_path):
    base, one = str(folders["base"]), str(folders["one"])
    assert "no-such" in refused(ModelNotFoundError, model=base, adapter="/no-such/adapter")
    assert "adapter_config.json" in refused(ModelNotFoundError, model=base, adapter=str(tmp_path))
    assert "contains an adapter" in refused(ModelLoadError, model=one, adapter=one)
    wrong = {"adapter_kwargs": {"subfolder": "x"}}
    assert "adapter_kwargs" in refused(ConfigError, model=base, adapter=one, model_kwargs=wrong)


def test_a_failed_adapter_leaves_nothing_behind(folders, tmp_path):
    loaded = registry.loaded()
    other = tiny.save_tiny(tmp_path / "other", tiny.byte_level(), tiny.gpt2)
    with pytest.raises(ModelLoadError, match="does not fit"):
        Ensemble(members=[MemberConfig(model=str(other), adapter=str(folders["one"]), tokenizer=str(other))]).load()
    assert registry.loaded() == loaded
    with alone(folders, "one") as ensemble:
        assert ensemble.generate(PROMPTS[0], max_new_tokens=4).text


def test_the_tokenizer_is_that_of_the_adapter_if_it_has_one(folders, tmp_path):
    bare = shutil.copytree(folders["one"], tmp_path / "bare", ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    templated = shutil.copytree(folders["one"], tmp_path / "templated")
    for file in templated.glob("*.jinja"):
        file.unlink()
    tokenizer = tiny.byte_level()
    tokenizer.chat_template = "{{ messages[0]['content'] }}!"
    base = tiny.save_tiny(tmp_path / "base", tiny.byte_level())
    tokenizer.save_pretrained(templated)
    templates = [
        registry.encoder(MemberConfig(model=str(base), adapter=str(folder))).tokenizer.chat_template
        for folder in (bare, templated)
    ]
    assert templates == [tiny.CHATML, tokenizer.chat_template]
