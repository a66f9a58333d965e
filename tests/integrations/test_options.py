"""Every option of the core is an option of every adapter and of the command line, and reaches the core.

The options are read from the core's config, so that a new option that an adapter lacks fails a test.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pickle
import re

import pytest
from langchain_core.runnables import ConfigurableField

from adafuse_core import ConfigError, Ensemble, EnsembleConfig
from adafuse_core.config import default_config
from adafuse_core.strategies import STRATEGIES
from adafuse_integrations.cli.options import add_ensemble_options, chosen_config
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, options_of
from adafuse_integrations.langchain import AdaFuseLLM, ChatAdaFuse
from adafuse_integrations.llama_index import AdaFuseLLM as LlamaIndexLLM
from tests.test_member_defaults import VALUES

MODELS = [AdaFuseLLM, ChatAdaFuse, LlamaIndexLLM]
DEFAULT = default_config()
OF_GENERATION = tuple(DEFAULT.to_dict()["generation"])


def core_config(options):
    """The config that the core makes of options."""
    generation = {name: value for name, value in options.items() if name in OF_GENERATION}
    others = {name: value for name, value in options.items() if name not in OF_GENERATION}
    return DEFAULT.updated({**others, "generation": generation})


def taken(options):
    """Whether the core accepts options."""
    with contextlib.suppress(ConfigError):
        return bool(core_config(options))
    return False


def choices(name):
    """The values of an option that the core's error message lists; empty if the option is not a choice."""
    for needed in ({}, *({"strategy": strategy} for strategy in STRATEGIES)):
        try:
            core_config({**needed, name: "no such choice"})
        except ConfigError as error:
            if found := re.findall(r"'([^']+)'", str(error).partition("expected one of")[2]):
                return found
    return []


def defaults():
    """Every option of the core except the members, with its default, including options of all strategies."""
    strategies = [{"strategy": name} for name in choices("strategy")]
    configs = [core_config(options).to_dict() for options in strategies if taken(options)]  # some need more members
    plain = {**{name: value for config in configs for name, value in config.items()}, **DEFAULT.to_dict()}
    return {
        **{name: value for name, value in plain.items() if name not in ("members", "generation")},
        **plain["generation"],
    }


DEFAULTS = defaults()


def changed(name):
    """A value of an option that differs from its default, and the option that it requires."""
    default = DEFAULTS[name]
    numbers = [default + 1, default / 2] if isinstance(default, int | float) else []
    values = (
        [not default] if isinstance(default, bool) else [*numbers, 1, 0.5, *choices(name), DEFAULT.members[1].label]
    )
    values = [("x",)] if isinstance(default, tuple) else values
    values = [{"dtype": "float64", "context_window": 100}] if isinstance(default, dict) else values
    beside = [{}, *({other: choice} for other in DEFAULTS for choice in choices(other) if other != name)]
    for strategy in STRATEGIES:
        rule = (
            {"strategy": strategy, "anchor": DEFAULT.members[1].label} if "anchor" in name else {"strategy": strategy}
        )
        beside += [rule, *({**rule, other: number + 2} for other, number in DEFAULTS.items() if type(number) is int)]
    tried = ({**needed, name: value} for needed in beside for value in values if value != default)
    return next(filter(taken, tried))


def asked(llm, **options):
    """Members, strategy and generation options of the generation that a call starts."""
    seen = []

    def stream(ensemble, prompt, *, tools=None, tool_choice="auto", parallel_tool_calls=True, grammar=None, **asked):
        asked.pop("cancel")
        params = ensemble.config.generation.updated(asked)
        seen.append(dataclasses.replace(ensemble.config, generation=params))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ensemble, "stream", stream)
        patch.setattr(Ensemble, "supports_chat", lambda ensemble: True)
        with pytest.raises(InterruptedError):
            (llm.complete if isinstance(llm, LlamaIndexLLM) else llm.invoke)("go", **options)
    (config,) = seen
    return config


@pytest.fixture(params=MODELS, ids=["langchain llm", "langchain chat", "llama_index"])
def kind(request):
    return request.param


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_of_an_adapter_reaches_the_core(kind, name):
    options = changed(name)
    expected = core_config(options)
    assert expected != DEFAULT
    assert asked(kind(**options)) == expected


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_survives_pickling_copying_and_from_ensemble(kind, name):
    options = changed(name)
    llm, expected = kind(**options), core_config(options)
    for twin in (pickle.loads(pickle.dumps(llm)), llm.model_copy(), kind.from_ensemble(Ensemble(expected))):
        assert asked(twin) == expected
    assert asked(kind().model_copy(update=options)) == expected
    if kind is LlamaIndexLLM:
        assert asked(kind.from_json(llm.to_json())) == expected
    else:
        tuned = kind().configurable_fields(**{option: ConfigurableField(id=option) for option in options})
        configured, _ = tuned.with_config(configurable=options).prepare()
        assert asked(configured) == expected


@pytest.mark.parametrize("name", OF_GENERATION)
def test_an_option_of_a_call_reaches_the_core(kind, name):
    options = changed(name)
    assert asked(kind(), **options) == core_config(options)


def parsed(options):
    """The config that the command line makes of arguments."""
    arguments = []
    for option, value in options.items():
        flag = "--" + option.replace("_", "-")
        if isinstance(value, bool):
            arguments += [flag if value else flag.replace("--", "--no-", 1)]
        elif isinstance(value, dict):
            arguments += [flag, json.dumps(value)]
        else:
            arguments += [flag, *value] if isinstance(value, tuple) else [flag, str(value)]
    parser = argparse.ArgumentParser()
    add_ensemble_options(parser)
    return chosen_config(parser.parse_args(arguments))


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name != "member_defaults"])
def test_an_option_of_the_command_line_reaches_the_core(name):
    options = changed(name)
    assert parsed(options) == core_config(options)


@pytest.mark.parametrize("name", VALUES)
def test_an_option_of_all_members_on_the_command_line_reaches_the_core(name):
    for value in VALUES[name]:
        assert parsed({name: value}) == DEFAULT.updated({name: value})


def test_members_reach_the_core_from_everywhere(kind):
    members = [{"model": "small:birch", "weight": 2.0}, "small:aspen"]
    expected = EnsembleConfig(members=members)
    assert asked(kind(members=members)) == expected
    parser = argparse.ArgumentParser()
    add_ensemble_options(parser)
    names = chosen_config(parser.parse_args(["--models", "small:birch", "small:aspen", "--dtype", "float64"])).members
    assert [(member.label, member.dtype) for member in names] == [("birch", "float64"), ("aspen", "float64")]


def test_defaults_and_descriptions_come_from_the_core(kind):
    for name, option in {**ENSEMBLE, **GENERATION}.items():
        assert option.description
        if name not in ("members", "stop"):  # whose form differs between frameworks
            assert kind.model_fields[name].default == option.default
            assert kind.model_fields[name].description == option.description
    assert asked(kind()) == DEFAULT


def test_the_description_of_an_option_of_several_strategies_has_what_each_says():
    described = ENSEMBLE["branches"].description
    assert "Of 'adafuse', 'consensus': Number of first tokens tried where a member is uncertain" in described
    assert "Of 'span': Number of first tokens that a member tries at the start of a span" in described
    assert described.endswith("Default of 'beam', 'adafuse', 'consensus': 3; of 'span': 1.")


def test_an_undocumented_option_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Untold:
        """A class.

        Args:
            told: About it,
                in two lines: here.
        """

        told: int = 1
        untold: int = 2

    with pytest.raises(KeyError, match="untold"):
        options_of(Untold)
    Untold.__doc__ += "    untold: More.\n"
    assert options_of(Untold)["told"].description == "About it, in two lines: here."


def test_an_option_that_the_command_line_can_not_read_is_an_error(monkeypatch):
    option = dataclasses.replace(GENERATION["seed"], name="shape", type=list[int])
    monkeypatch.setattr("adafuse_integrations.cli.options.GENERATION", {"shape": option})
    with pytest.raises(TypeError, match="shape"):
        add_ensemble_options(argparse.ArgumentParser())
