"""`adafuse`: the entry point of the command line. Each subcommand is a file beside this one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import adafuse_core
from adafuse_core import AdaFuseError, EnsembleConfig, GenerationParams
from adafuse_integrations.cli import ask, chat, demo

COMMANDS = (demo, ask, chat)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except AdaFuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f'error: {error.name} is not installed\nHint: pip install "adafuse[demo]"', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adafuse", description=adafuse_core.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"adafuse {adafuse_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1]
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        _add_ensemble_options(sub)
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return parser


def _add_ensemble_options(parser: argparse.ArgumentParser) -> None:
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
    for name, kind, text in (
        ("tau", float, "confidence threshold"),
        ("max_words", int, "most words drafted per round"),
        ("branches", int, "first tokens tried where a model is unsure"),
        ("speculation", str, "how models guess ahead (auto, verify, lookup, off); the text is the same"),
    ):
        group.add_argument(_flag(name), type=kind, help=f"{text} (default: {_default(EnsembleConfig, name)})")
    for name, kind, text in (
        ("max_new_tokens", int, "longest answer, in tokens of the first model"),
        ("temperature", float, "0 commits the best candidate"),
        ("seed", int, "makes draws repeatable"),
    ):
        group.add_argument(_flag(name), type=kind, help=f"{text} (default: {_default(GenerationParams, name)})")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(cls: type[Any], name: str) -> Any:
    return cls.__dataclass_fields__[name].default


if __name__ == "__main__":
    sys.exit(main())
