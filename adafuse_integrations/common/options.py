"""The core's options as adapters offer them. Names, types, defaults and descriptions are read from its dataclasses.

`fields` makes pydantic fields of them, the command line its arguments. An option that is added to the core reaches all
of them; no list of names is kept here or there.
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

_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)  # of "Args:" in a docstring


@dataclass(frozen=True, kw_only=True)
class Option:
    """A field of a dataclass.

    Args:
        name: As in Python.
        type: Its annotation, resolved.
        default: `dataclasses.MISSING` if there is none.
        description: What the docstring says of it.
    """

    name: str
    type: Any
    default: Any
    description: str


def options_of(kind: type[Any]) -> dict[str, Option]:
    """The options that a dataclass holds, by name, in its order.

    Raises:
        KeyError: Its docstring leaves one out.
    """
    types, said = typing.get_type_hints(kind), _said_of(kind)
    return {
        field.name: Option(
            name=field.name, type=types[field.name], default=_default(field), description=said[field.name]
        )
        for field in dataclasses.fields(kind)
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _said_of(kind: type[Any]) -> dict[str, str]:
    """The descriptions of a docstring's arguments, each in one line."""
    arguments = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    return {match[1]: " ".join(match[2].split()) for match in _ENTRY.finditer(arguments)}


def _of_strategies() -> dict[str, Option]:
    """The options of all strategies. None leaves one at its default: a strategy refuses the options of others."""
    found = {}
    for name, strategy in STRATEGIES.items():
        for option in options_of(strategy).values():
            said = f"{option.description} Of strategy {name!r}; default: {option.default}."
            found[option.name] = dataclasses.replace(option, type=option.type | None, default=None, description=said)
    return found


def _of_ensemble() -> dict[str, Option]:
    """The options of an ensemble, but for those that may differ from call to call."""
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
    """What an adapter's attributes say of the ensemble, as `EnsembleConfig.from_any` reads it."""
    values = {name: getattr(fields, name) for name in ENSEMBLE}
    return {name: value for name, value in values.items() if value is not None or name not in STRATEGY}


def generation_values(fields: object) -> dict[str, Any]:
    """What an adapter's attributes say of generation, as fields of `GenerationParams`."""
    return {name: getattr(fields, name) for name in GENERATION}


def call_options(given: Mapping[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """The options of a call by the core's names.

    Args:
        given: What the caller gave, in the names of the core or of OpenAI.
        others: Options of the adapter that are no fields of `GenerationParams`.

    Raises:
        ConfigError: An option is unknown, or can't differ from call to call.
    """
    named = openai.generation_options(given)
    return known_options([*GENERATION, *others], named, "generation option", FIXED_IN_CALLS)


def constructor_options(given: Mapping[str, Any], known: Iterable[str], kind: str) -> dict[str, Any]:
    """The arguments of an adapter's constructor by its fields' names; fields of `MemberConfig` go to `member_defaults`.

    Args:
        given: What the caller gave, in the names of the core or of OpenAI.
        known: Fields of the adapter.
        kind: Name of the adapter, for errors.

    Raises:
        ConfigError: An argument is unknown.
    """
    names, named = list(known), openai.generation_options(given)
    shared = {name: named.pop(name) for name in SHARED_OPTIONS if name in named and name not in names}
    if shared:
        named["member_defaults"] = {**named.get("member_defaults", {}), **shared}
    return known_options([*names, *SHARED_OPTIONS], named, f"argument of {kind}")


def as_fields(config: EnsembleConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with some changes, in the core's names or OpenAI's, as values of an adapter's attributes.

    Raises:
        ConfigError: Its strategy is in no table, so that adapters have no name for it.
    """
    changes, name = openai.generation_options(changes), config.strategy.name
    if STRATEGIES.get(name) is not type(config.strategy):
        raise ConfigError(
            f"{type(config.strategy).__name__} is no strategy that adapters have a name for",
            hint=f"give it a row: adafuse_core.strategies.STRATEGIES[{name!r}] = {type(config.strategy).__name__}",
        )
    stays = changes.get("strategy", name) == name
    own = {option: getattr(config.strategy, option) for option in field_names(config.strategy)} if stays else {}
    others = {option: getattr(config, option) for option in field_names(EnsembleConfig) if option != "generation"}
    return {**others, "strategy": name, **own, **generation_values(config.generation), **changes}
