"""First contact: hints for unknown options, single values instead of lists, loading and warming up."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path

import pytest
import torch

from adafuse_core import (
    ConfigError,
    Ensemble,
    EnsembleConfig,
    Grammar,
    MemberConfig,
    Message,
    PromptError,
    ScriptedMember,
)
from adafuse_core.checks import known_options, option_hint, several
from adafuse_core.config import GenerationParams, default_config

# Options of other libraries, with a word of the expected hint.
ELSEWHERE = {
    "top_p": "temperature",
    "top_k": "temperature",
    "min_p": "temperature",
    "repetition_penalty": "can't be changed",
    "frequency_penalty": "can't be changed",
    "presence_penalty": "can't be changed",
    "logit_bias": "can't be changed",
    "n": "several times",
    "temp": "use temperature",
    "cache_dir": "model_kwargs",
    "best_of": "several times",
    "do_sample": "temperature",
    "num_beams": "beams",
    "streaming": "stream()",
    "model_name": "members=",
    "api_base": "members=",
    "base_url": "members=",
    "max_length": "max_new_tokens",
    "stop_sequences": "use stop",
    "torch_dtype": "use dtype",
    "load_in_4bit": "quantization_config",
    "n_ctx": "context_window",
    "weights": "weight",
    "functions": "use tools",
    "random_seed": "use seed",
}
MISSPELT = {"temprature": "temperature", "Temperature": "temperature", "max_new_token": "max_new_tokens", "sed": "seed"}


def ensemble(**options):
    return Ensemble(members=[ScriptedMember("m", "hello there")], **options)


def given_to(place, options):
    """Pass options to the core."""
    if place == "constructor":
        return Ensemble(**options)
    if place == "call":
        return ensemble().generate("go", **options)
    if place == "batch":
        return ensemble().batch(["go"], **options)
    if place == "generation":
        return EnsembleConfig(members=["a"], generation=options)
    if place == "member":
        return EnsembleConfig(members=[{"model": "a", **options}])
    return EnsembleConfig.from_any({"members": ["a"], **options})


PLACES = ["constructor", "call", "batch", "generation", "member", "mapping"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_options_of_other_libraries_get_a_hint_with_the_replacement(place, name):
    with pytest.raises(ConfigError, match=f"unknown .*{name!r}") as caught:
        given_to(place, {name: 1})
    assert ELSEWHERE[name] in caught.value.hint
    assert "did you mean" not in caught.value.hint


@pytest.mark.parametrize("place", ["constructor", "call", "batch", "generation", "mapping"])
@pytest.mark.parametrize("name", MISSPELT)
def test_misspelt_options_get_a_hint_with_the_right_name(place, name):
    with pytest.raises(ConfigError) as caught:
        given_to(place, {name: 1})
    assert f"did you mean {MISSPELT[name]!r}?" in caught.value.hint


def test_a_yaml_file_gets_the_same_hints(tmp_path):
    for line, hint in (("top_p: 0.9", "temperature"), ("tua_: 0.5", "tau"), ("dtpye: float16", "dtype")):
        (tmp_path / "e.yaml").write_text(f"members: [a]\n{line}\n", encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            Ensemble.from_config(tmp_path / "e.yaml")
        assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["tau", "scoring", "dtype", "members", "member_defaults"])
def test_options_fixed_at_construction_are_refused_in_calls(name):
    with pytest.raises(ConfigError, match="when you create the ensemble"):
        ensemble().generate("go", **{name: 1})


def test_a_distant_name_gets_no_suggestion():
    for name in ("top_q_", "zzz", "stack", "steep", "tops_k"):
        assert "'stop'" not in option_hint(name, ["stop", "seed"]).partition("known options")[0]
    assert option_hint("zzz", ["stop", "seed"]) == "known options: stop, seed"
    with pytest.raises(ConfigError) as caught:
        known_options([], {"zzz": 1}, "option")
    assert caught.value.hint == "known options: none"


def test_no_known_option_is_in_the_table_of_other_libraries_options():
    for kind in (EnsembleConfig, GenerationParams):
        for field in dataclasses.fields(kind):
            with pytest.raises(ConfigError) as caught:
                known_options([field.name], {field.name + "_": 1}, "option")
            assert caught.value.hint == f"did you mean {field.name!r}?"


USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
WRONG = {
    "one prompt": lambda e: e.batch("Hello"),
    "one message as prompts": lambda e: e.batch(USER),
    "one Message as prompts": lambda e: e.batch(Message(role="user", content="hi")),
    "one conversation as prompts": lambda e: e.batch([USER]),
    "no prompts": lambda e: e.batch(None),
    "one message": lambda e: e.generate(USER),
    "one Message": lambda e: e.generate(Message(role="user", content="hi")),
    "bytes": lambda e: e.generate(b"hi"),
    "a path": lambda e: e.generate(Path("hi")),
    "a number": lambda e: e.generate(3),
    "texts as messages": lambda e: e.generate(["hi", "there"]),
    "one message to count": lambda e: e.count_tokens(USER),
    "no text to count": lambda e: e.count_text_tokens(["hi"]),
    "one continuation": lambda e: e.score("go", "abc"),
    "bytes as continuations": lambda e: e.score("go", b"abc"),
    "one tool": lambda e: e.generate([USER], tools=TOOL),
    "the name of a tool": lambda e: e.generate([USER], tools="f"),
    "one tool to count": lambda e: e.count_tokens([USER], TOOL),
    "bytes as stop": lambda e: e.generate("go", stop=b"there"),
    "a mapping as stop": lambda e: e.generate("go", stop={"there": 1}),
    "parallel_tool_calls": lambda e: e.generate([USER], parallel_tool_calls="no"),
    "cancel": lambda e: e.generate("go", cancel=True),
    "cancel of a score": lambda e: e.score("go", [" hi"], cancel=3),
    "one model": lambda e: Ensemble(members="gpt2"),
    "one path": lambda e: Ensemble(members=Path("/models/gpt2")),
    "one mapping": lambda e: Ensemble(members={"model": "gpt2"}),
    "one config": lambda e: Ensemble(members=MemberConfig(model="gpt2")),
    "one ready-made member": lambda e: Ensemble(members=ScriptedMember("m", "hi")),
    "an unordered set": lambda e: Ensemble(members={"a", "b"}),
    "what is no member": lambda e: Ensemble(members=[object()]),
    "a model as config": lambda e: Ensemble("gpt2"),
    "models as config": lambda e: Ensemble(["gpt2", "other"]),
    "one member in a config": lambda e: EnsembleConfig(members="gpt2"),
    "a list among names": lambda e: Ensemble.from_pretrained(["gpt2"], "other"),
    "nothing to load": lambda e: Ensemble.from_pretrained(None),
    "a device's number": lambda e: MemberConfig(model="a", device=0),
    "a text as mapping": lambda e: MemberConfig(model="a", model_kwargs="x"),
    "nothing as mapping": lambda e: MemberConfig(model="a", template_kwargs=None),
    "a text as flag": lambda e: MemberConfig(model="a", trust_remote_code="yes"),
    "no content": lambda e: e.generate([{"role": "user"}]),
    "texts as content": lambda e: e.generate([{"role": "user", "content": ["hi"]}]),
    "another key": lambda e: e.generate([{"role": "user", "text": "hi"}]),
    "an unknown role": lambda e: Message(role="usr", content="hi"),
    "content of another kind": lambda e: Message(role="user", content=3),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_quote_the_invalid_value(name):
    member = ScriptedMember("m", "hello there")
    with pytest.raises((ConfigError, PromptError)) as caught:
        WRONG[name](Ensemble(members=[member]))
    assert re.search(r"got |no 'content'|unknown message keys|can't read ensemble config", caught.value.message)
    assert "expected" in caught.value.message or caught.value.hint
    assert member.prompts == []


def test_lists_may_be_any_ordered_iterable():
    members = [ScriptedMember("m", "hello there")]
    for kind in (list, tuple, iter):
        one = Ensemble(members=kind(members))
        assert one.names == ("m",)
        assert [answer.text for answer in one.batch(kind(["a", "b"]))] == ["hello there"] * 2
        assert one.generate(kind([USER])).text == "hello there"
        assert one.count_tokens(kind([USER])) == {"m": 2}
        assert len(one.score("go", kind([" hi", " there"]))) == 2
        assert one.generate([USER], tools=kind([TOOL])).text == "hello there"
        assert one.generate("go", stop=kind(["there"])).text == "hello "
        assert EnsembleConfig(members=kind(["a", "b"])).members[1].label == "b"
    assert one.generate("go", stop="there").text == "hello "


def test_a_pydantic_object_is_not_a_list():
    class Model:
        model_fields_set = frozenset()

        def __iter__(self):
            return iter([("role", "user")])

    with pytest.raises(ConfigError, match="expected a list"):
        several("messages", Model(), "write [message]")


def test_from_pretrained_takes_several_or_a_list_and_options():
    for models in (
        ["small:aspen", "small:birch"],
        ("small:aspen", Path("small:birch")),
        iter(["small:aspen", "small:birch"]),
    ):
        loaded = Ensemble.from_pretrained(models, tau=0.5, dtype="float64")
        assert loaded.names == ("aspen", "birch")
        assert [member["dtype"] for member in loaded.describe()["members"]] == ["float64", "float64"]
        assert loaded.config.strategy.tau == 0.5
    assert Ensemble.from_pretrained("small:aspen", "small:birch", tau=0.5).names == ("aspen", "birch")
    assert Ensemble.from_pretrained(members=["small:aspen"]).names == ("aspen",)


def test_paths_are_models_everywhere():
    for member in (Path("/models/one"), {"model": Path("/models/one")}, MemberConfig(model=Path("/models/one"))):
        assert EnsembleConfig(members=[member]).members[0].model == "/models/one"
    assert MemberConfig(model="a", tokenizer=Path("/models/two")).tokenizer == "/models/two"


def test_torchs_own_types_are_options_by_their_names():
    config = MemberConfig(model="a", dtype=torch.bfloat16, device=torch.device("cuda", 1))
    assert (config.dtype, config.device) == ("bfloat16", "cuda:1")
    with pytest.raises(ConfigError, match="dtype='int8'"):
        EnsembleConfig(members=["a"], member_defaults={"dtype": torch.int8})


class TestLoading:
    def test_the_log_describes_each_member(self, caplog):
        caplog.set_level("INFO")
        config = default_config().updated({"dtype": "float64", "context_window": 1999})  # not loaded by other tests
        with Ensemble(config).load():
            pass
        for name in ("aspen", "birch"):
            told = [record.getMessage() for record in caplog.records if f"member '{name}'" in record.getMessage()]
            steps = [re.search(r"loading small|self-test|ready after [\d.]+ s", line) for line in told]
            assert [step[0].split()[0] for step in steps if step] == ["loading", "self-test", "ready"]

    def test_warming_up_answers_with_and_without_a_grammar(self):
        member = ScriptedMember("m", "hello there, this is a long answer that goes on and on")
        opened = []
        member.open = lambda opening: opened.append(opening) or ScriptedMember.open(member, opening)
        warm = Ensemble(members=[member], generation={"max_new_tokens": None, "stop": "h"})
        assert warm.warm() is warm
        assert [opening.grammar is not None for opening in opened] == [False, True]
        assert all(not isinstance(opening.prompt, str) for opening in opened)

    def test_members_without_chat_template_are_warmed_up_with_text(self):
        member = ScriptedMember("m", "hello there", chat=False)
        Ensemble(members=[member]).warm()
        assert member.prompts == ["Hello", "Hello"]

    def test_after_warming_up_no_cache_is_built(self, monkeypatch):
        from adafuse_core.members import masks, registry
        from adafuse_core.text import vocabulary

        warm = Ensemble(dtype="float64", context_window=1998).warm()
        loaded, built = registry.loaded(), []
        for place, name in ((vocabulary, "LLTokenizer"), (masks, "Vocabulary")):
            if kind := getattr(place, name, None):
                monkeypatch.setattr(place, name, lambda *a, kind=kind, **k: built.append(kind) or kind(*a, **k))
        assert warm.generate([USER], grammar=Grammar.regex("(yes|no)"), max_new_tokens=8).text in ("yes", "no")
        assert built == []
        assert registry.loaded() == loaded

    def test_the_log_says_how_members_are_shown_tools(self, caplog):
        caplog.set_level("INFO")
        silent = ScriptedMember("quiet", "hi")
        silent.shows_tools = False
        assert Ensemble(members=[ScriptedMember("m", "hi"), silent]).supports_tools()
        assert "the chat template of quiet shows no tools" in caplog.text
        caplog.clear()
        mixed = [ScriptedMember("a", "hi"), ScriptedMember("b", "hi", dialect="mistral")]
        assert Ensemble(members=mixed).supports_tools()
        assert "different formats for calls (hermes, mistral)" in caplog.text
        caplog.clear()
        assert not Ensemble(
            members=[ScriptedMember("a", "hi"), ScriptedMember("base", "hi", chat=False)]
        ).supports_tools()
        assert "no chat template in base" in caplog.text
        caplog.clear()
        assert ensemble().supports_tools()
        assert not caplog.records


def test_a_cancel_event_is_kept():
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Exception, match="cancelled"):
        ensemble().generate("go", cancel=cancel)
