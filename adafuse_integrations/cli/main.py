"""`adafuse`: the entry point of the command line. Each subcommand is a file beside this one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import adafuse_core
from adafuse_core import AdaFuseError, ConfigError
from adafuse_core.checks import option_hint
from adafuse_integrations.cli import ask, chat, demo
from adafuse_integrations.cli.options import add_ensemble_options

COMMANDS = (demo, ask, chat)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    args, unknown = _parser().parse_known_args(arguments)
    try:
        _refuse(unknown, args)
        with _progress():
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


def _refuse(unknown: Sequence[str], args: argparse.Namespace) -> None:
    """Refuse arguments that no command knows, with what to use instead."""
    if unknown:
        named = next((argument for argument in unknown if argument.startswith("--")), None)
        if named is None:
            raise ConfigError(f"got {unknown[0]!r}, which no option takes", hint="quote texts that hold blanks")
        option = named.lstrip("-").partition("=")[0]
        hint = option_hint(option, [name for name in vars(args) if name != "run"])
        raise ConfigError(f"unknown option {named!r}", hint=f"{hint} (see --help)")


@contextmanager
def _progress() -> Iterator[None]:
    """Show what the core tells of loading, on standard error."""
    logger, shown = logging.getLogger(adafuse_core.__name__), logging.StreamHandler()
    level = logger.level
    logger.addHandler(shown)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(shown)
        logger.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adafuse", description=adafuse_core.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"adafuse {adafuse_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1]
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        add_ensemble_options(sub)
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
