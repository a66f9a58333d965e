"""The options of the core on the command line, and from there to an ensemble."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping
from typing import Any

from adafuse_core import ConfigError, Ensemble, EnsembleConfig
from adafuse_core.config import default_config
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, Option

_ENSEMBLE = {name: option for name, option in ENSEMBLE.items() if name != "members"}  # which are --models


def add_ensemble_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command shares. What is not given keeps the default of the dataclasses."""
    group = parser.add_argument_group("ensemble")
    group.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="Hugging Face names or paths (after the question); default: the small ones",
    )
    group.add_argument("--config", metavar="FILE", help="YAML file with the fields of EnsembleConfig")
    group.add_argument("--dtype", help="of all models, such as bfloat16")
    group.add_argument("--device", help="of all models, such as cuda:0")
    for option in (*_ENSEMBLE.values(), *GENERATION.values()):
        told = (
            option.description if option.default in (None, ()) else f"{option.description} (default: {option.default})"
        )
        group.add_argument("--" + option.name.replace("_", "-"), help=told.replace("%", "%%"), **_reading(option))


def build_ensemble(args: argparse.Namespace) -> Ensemble:
    """The ensemble that the options ask for, loaded."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return Ensemble(chosen_config(args)).load()


def chosen_config(args: argparse.Namespace) -> EnsembleConfig:
    """The config that the options ask for."""
    if args.models and args.config:
        raise ConfigError("got --models and --config", hint="name the models in one of them")
    base = EnsembleConfig.from_any(args.config) if args.config else default_config()
    options = {**_given(args, _ENSEMBLE), "generation": _given(args, GENERATION)}
    if args.models:
        options["members"] = [_member(args, model) for model in args.models]
    elif args.dtype or args.device:
        raise ConfigError("--dtype and --device need --models", hint="name the models, or use a config file")
    return base.updated(options)


def singles(ensemble: Ensemble) -> dict[str, Ensemble]:
    """Each member alone, with the ensemble's settings but for draws: one member has nothing to draw from."""
    settings = ensemble.config.generation
    greedy = {"max_new_tokens": settings.max_new_tokens, "stop": settings.stop}
    return {
        name: Ensemble(ensemble.config, strategy="single", member=name, generation=greedy) for name in ensemble.names
    }


def _reading(option: Option) -> dict[str, Any]:
    """How `argparse` reads a value of the option's type."""
    if option.type == tuple[str, ...]:
        return {"action": "append", "metavar": "TEXT"}
    kinds = typing.get_args(option.type) if isinstance(option.type, types.UnionType) else (option.type,)
    (kind,) = (kind for kind in kinds if kind is not types.NoneType)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind not in (str, int, float):
        raise TypeError(f"option {option.name!r} is a {option.type}, which the command line can't read")
    return {"type": kind}


def _given(args: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in options if getattr(args, name) is not None}


def _member(args: argparse.Namespace, model: str) -> dict[str, Any]:
    chosen = {"dtype": args.dtype, "device": args.device}
    return {"model": model} | {name: value for name, value in chosen.items() if value is not None}
