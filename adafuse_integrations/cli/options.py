"""From command line options to an ensemble."""

from __future__ import annotations

import argparse
from typing import Any

from adafuse_core import ConfigError, Ensemble, EnsembleConfig
from adafuse_core.ensemble import default_config

_GENERATION = ("max_new_tokens", "temperature", "seed")
_ENSEMBLE = ("tau", "max_words", "branches", "speculation")


def build_ensemble(args: argparse.Namespace) -> Ensemble:
    """The ensemble that the options ask for, loaded."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if args.models and args.config:
        raise ConfigError("got --models and --config", hint="name the models in one of them")
    base = EnsembleConfig.from_any(args.config) if args.config else default_config()
    options: dict[str, Any] = {name: getattr(args, name) for name in _ENSEMBLE if getattr(args, name) is not None}
    options["generation"] = {name: getattr(args, name) for name in _GENERATION if getattr(args, name) is not None}
    if args.models:
        options["members"] = [_member(args, model) for model in args.models]
    elif args.dtype or args.device:
        raise ConfigError("--dtype and --device need --models", hint="name the models, or use a config file")
    return Ensemble(base, **options).load()


def singles(ensemble: Ensemble) -> dict[str, Ensemble]:
    """Each member alone, with the ensemble's settings but for draws: one member has nothing to draw from."""
    settings = ensemble.config.generation
    greedy = {"max_new_tokens": settings.max_new_tokens, "stop": settings.stop}
    return {
        name: Ensemble(ensemble.config, strategy="single", member=name, generation=greedy) for name in ensemble.names
    }


def _member(args: argparse.Namespace, model: str) -> dict[str, Any]:
    chosen = {"dtype": args.dtype, "device": args.device}
    return {"model": model} | {name: value for name, value in chosen.items() if value is not None}
