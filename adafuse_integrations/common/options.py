"""The core's options as adapters offer them. Names, types, defaults and descriptions come from the core's dataclasses.

The module `fields` turns options into pydantic fields, and the command line turns them into arguments. A new option of
the core therefore reaches every adapter without a change here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adafuse_core.chat import openai
from adafuse_core.checks import field_names, known_options
from adafuse_core.config import FIXED_IN_CALLS, EnsembleConfig, GenerationParams
from adafuse_core.errors import ConfigError
from adafuse_core.member_config import SHARED_OPTIONS, MemberConfig
from adafuse_core.strategies import STRATEGIES

_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)  # one argument in the "Args:" of a docstring


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of the core: a field of one of its dataclasses.

    Args:
        name: Name of the field.
        type: Resolved type annotation of the field.
        default: Default value; `dataclasses.MISSING` for a required field.
        description: The field's entry in the docstring of the dataclass.
    """

    name: str
    type: Any
    default: Any
    description: str


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The fields of a dataclass as options, by name, in order of definition.

    Raises:
        KeyError: The docstring of the dataclass does not describe a field.
    """
    types, descriptions = typing.get_type_hints(kind), _descriptions(kind)
    return {
        field.name: Option(
            name=field.name, type=types[field.name], default=_default(field), description=descriptions[field.name]
        )
        for field in dataclasses.fields(kind)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _descriptions(kind: type[Any]) -> dict[str, str]:
    """The argument descriptions in the docstrings of a class and its bases, each as one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        arguments = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Args:\n")[2].partition("\n\n")[0]
        found |= {match[1]: " ".join(match[2].split()) for match in _ENTRY.finditer(arguments)}
    return found


def _of_strategies() -> dict[str, Option]:
    """The options of all strategies. Their default is None, because a strategy refuses options of other strategies."""
    found: dict[str, dict[str, Option]] = {}
    for strategy, kind in STRATEGIES.items():
        for name, option in options_of(kind).items():
            found.setdefault(name, {})[strategy] = option
    return {name: _shared(options) for name, options in found.items()}


def _shared(options: Mapping[str, Option]) -> Option:
    """One option in place of those of several strategies, with all their descriptions and defaults."""
    first = next(iter(options.values()))
    described = _by_value({name: option.description for name, option in options.items()})
    texts = [text if len(described) == 1 else f"Of {names}: {text}" for text, names in described.items()]
    defaults = _by_value({name: option.default for name, option in options.items()})
    texts += ["Default " + "; ".join(f"of {names}: {default}" for default, names in defaults.items()) + "."]
    return dataclasses.replace(first, type=first.type | None, default=None, description=" ".join(texts))


def _by_value(values: Mapping[str, Any]) -> dict[Any, str]:
    """The names of the strategies that have each value, separated by commas."""
    names: dict[Any, list[str]] = {}
    for strategy, value in values.items():
        names.setdefault(value, []).append(repr(strategy))
    return {value: ", ".join(each) for value, each in names.items()}


def _of_ensemble() -> dict[str, Option]:
    """The options of an ensemble, without the generation options, which may differ from call to call."""
    own = options_of(EnsembleConfig)
    del own["generation"]
    names = f"Name of the strategy: {', '.join(STRATEGIES)}."
    own["strategy"] = Option(name="strategy", type=str, default=own["strategy"].default.name, description=names)
    return {**own, **STRATEGY}


STRATEGY: Mapping[str, Option] = _of_strategies()
ENSEMBLE: Mapping[str, Option] = _of_ensemble()
GENERATION: Mapping[str, Option] = options_of(GenerationParams)
MEMBER_DEFAULTS: Mapping[str, Option] = {name: options_of(MemberConfig)[name] for name in SHARED_OPTIONS}


def ensemble_values(fields: object) -> dict[str, Any]:
    """The attributes of an adapter that describe its ensemble, as arguments of `EnsembleConfig.from_any`."""
    values = {name: getattr(fields, name) for name in ENSEMBLE}
    return {name: value for name, value in values.items() if value is not None or name not in STRATEGY}


def generation_values(fields: object) -> dict[str, Any]:
    """The attributes of an adapter that are fields of `GenerationParams`."""
    return {name: getattr(fields, name) for name in GENERATION}


def read_call_options(given: Mapping[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """Convert the options of a call to the core's names.

    Args:
        given: The caller's options, with names of the core or of OpenAI.
        others: Names of the adapter's own call options, which are not fields of `GenerationParams`.

    Raises:
        ConfigError: An option is unknown, or is fixed for all calls of an ensemble.
    """
    named = openai.generation_options(given)
    return known_options([*GENERATION, *others], named, "generation option", FIXED_IN_CALLS)


def read_constructor_options(given: Mapping[str, Any], known: Iterable[str], kind: str) -> dict[str, Any]:
    """Convert the arguments of an adapter's constructor to the names of its fields.

    Fields of `MemberConfig` are collected in `member_defaults`.

    Args:
        given: The caller's arguments, with names of the core or of OpenAI.
        known: Names of the adapter's fields.
        kind: Class name of the adapter, for error messages.

    Raises:
        ConfigError: An argument is unknown.
    """
    names, named = list(known), openai.generation_options(given)
    shared = {name: named.pop(name) for name in SHARED_OPTIONS if name in named and name not in names}
    if shared:
        named["member_defaults"] = {**named.get("member_defaults", {}), **shared}
    return known_options([*names, *SHARED_OPTIONS], named, f"argument of {kind}")


def fields_from_config(config: EnsembleConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a config to values of an adapter's fields.

    Args:
        config: Config of an ensemble.
        changes: Values that replace those of the config, with names of the core or of OpenAI.

    Raises:
        ConfigError: The strategy is not registered, so adapters can't select it by name.
    """
    changes, name = openai.generation_options(changes), config.strategy.name
    if STRATEGIES.get(name) is not type(config.strategy):
        raise ConfigError(
            f"the strategy {type(config.strategy).__name__} is not registered, but adapters select strategies by name",
            hint=f"register it: adafuse_core.strategies.STRATEGIES[{name!r}] = {type(config.strategy).__name__}",
        )
    keeps_strategy = changes.get("strategy", name) == name
    own = (
        {option: getattr(config.strategy, option) for option in field_names(config.strategy)} if keeps_strategy else {}
    )
    others = {option: getattr(config, option) for option in field_names(EnsembleConfig) if option != "generation"}
    return {**others, "strategy": name, **own, **generation_values(config.generation), **changes}
