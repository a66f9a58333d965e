"""`adafuse`: the entry point of the command line. Each subcommand is a module of this package."""

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
    """Run a command and return the exit status."""
    args, unknown = _parser().parse_known_args(arguments)
    try:
        _check_unknown(unknown, args)
        with _log_on_stderr():
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


def _check_unknown(unknown: Sequence[str], args: argparse.Namespace) -> None:
    """Raise a `ConfigError` for unknown arguments, with a hint."""
    if unknown:
        named = next((argument for argument in unknown if argument.startswith("--")), None)
        if named is None:
            raise ConfigError(f"unexpected argument {unknown[0]!r}", hint="quote a text that contains blanks")
        option = named.lstrip("-").partition("=")[0]
        hint = option_hint(option, [name for name in vars(args) if name != "run"])
        raise ConfigError(f"unknown option {named!r}", hint=f"{hint} (see --help)")


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Print the core's log, such as the progress of loading, on standard error."""
    logger, handler = logging.getLogger(adafuse_core.__name__), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
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
