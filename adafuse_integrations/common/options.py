"""The core's options as adapters offer them. Names, types, defaults and descriptions are read from its dataclasses.

`fields` makes pydantic fields of them, the command line its arguments. An option that is added to the core reaches all
of them; no list of names is kept here or there.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adafuse_core.config import EnsembleConfig, GenerationParams

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


ENSEMBLE: Mapping[str, Option] = {
    name: option for name, option in options_of(EnsembleConfig).items() if name != "generation"
}
GENERATION: Mapping[str, Option] = options_of(GenerationParams)


def ensemble_values(fields: object) -> dict[str, Any]:
    """What an adapter's attributes say of the ensemble, as `EnsembleConfig.from_any` reads it."""
    return {name: getattr(fields, name) for name in ENSEMBLE}


def generation_values(fields: object) -> dict[str, Any]:
    """What an adapter's attributes say of generation, as fields of `GenerationParams`."""
    return {name: getattr(fields, name) for name in GENERATION}


def as_fields(config: EnsembleConfig) -> dict[str, Any]:
    """A config as values of an adapter's attributes."""
    return {**ensemble_values(config), **generation_values(config.generation)}
