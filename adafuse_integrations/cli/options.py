"""The core's options as command line arguments, and the ensemble that the arguments describe."""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from adafuse_core import ConfigError, Ensemble, EnsembleConfig
from adafuse_core.config import default_config
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, MEMBER_DEFAULTS, Option

# `--models` sets `members`, and each of the member defaults has an argument of its own.
_ENSEMBLE = {name: option for name, option in ENSEMBLE.items() if name not in ("members", "member_defaults")}
_METAVARS: Mapping[type, str] = {str: "TEXT", int: "INTEGER", float: "NUMBER"}


def add_ensemble_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all commands share. An omitted argument keeps the default of the core's dataclasses."""
    group = parser.add_argument_group("ensemble")
    group.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="Models of the ensemble: Hugging Face names or paths. Put this option after the question. "
        "(default: the two small models of the package)",
    )
    group.add_argument(
        "--config", metavar="FILE", help="YAML file with the fields of EnsembleConfig, instead of --models."
    )
    for option in (*_ENSEMBLE.values(), *GENERATION.values()):
        add_option(group, option)
    group = parser.add_argument_group(
        "members", "Defaults for all models that don't set these options in the config file."
    )
    for option in MEMBER_DEFAULTS.values():
        add_option(group, option)


def add_json_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--json`, which prints a result for programs in place of tables and colours."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def build_ensemble(args: argparse.Namespace) -> Ensemble:
    """Make the ensemble that the arguments describe, and load its models."""
    return load(Ensemble(chosen_config(args)))


def load(ensemble: Ensemble) -> Ensemble:
    """Load the models of an ensemble, with progress bars if standard error is a terminal."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return ensemble.load(progress=sys.stderr.isatty())


def chosen_config(args: argparse.Namespace) -> EnsembleConfig:
    """The config that the arguments describe."""
    if args.models and args.config is not None:
        raise ConfigError("got both --models and --config", hint="name the models in one of them")
    base = default_config() if args.config is None else EnsembleConfig.from_any(args.config)
    options = {**given(args, _ENSEMBLE), **given(args, MEMBER_DEFAULTS), "generation": given(args, GENERATION)}
    if args.models:
        options["members"] = args.models
    return base.updated(options)


def singles(ensemble: Ensemble) -> dict[str, Ensemble]:
    """For each member, an ensemble of this member alone with the same settings, but without sampling."""
    return {name: Ensemble(ensemble.config.alone(name)) for name in ensemble.names}


def add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """Add one option of the core as an argument; None stands for an omitted argument."""
    default = "" if option.default in (None, (), {}) else f" (default: {option.default})"
    text = (option.description + default).replace("%", "%%")
    group.add_argument("--" + option.name.replace("_", "-"), help=text, **_parsing(option))


def given(args: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    """The values of the options that were given on the command line."""
    return {name: getattr(args, name) for name in options if getattr(args, name) is not None}


def _parsing(option: Option) -> dict[str, Any]:
    """Arguments of `add_argument` that parse a value of the option's type."""
    if option.type == tuple[str, ...]:
        return {"action": "append", "metavar": "TEXT"}
    kinds = typing.get_args(option.type) if isinstance(option.type, types.UnionType) else (option.type,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds if kind is not types.NoneType)
    if bool in kinds:
        return {"action": argparse.BooleanOptionalAction}
    if set(kinds) <= {str, dict, Mapping} and kinds != (str,):
        return {"type": _text_or_mapping if str in kinds else _mapping, "metavar": "JSON"}
    if len(kinds) > 1 or kinds[0] not in _METAVARS:
        raise TypeError(f"option {option.name!r} has type {option.type}, which the command line can't parse")
    return {"type": kinds[0], "metavar": _METAVARS[kinds[0]]}


def _mapping(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a JSON object such as '{{\"name\": 1}}'")
    return value


def _text_or_mapping(text: str) -> str | dict[str, Any]:
    return _mapping(text) if text.lstrip().startswith("{") else text
