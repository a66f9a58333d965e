"""`adafuse`: the entry point of the command line. Each subcommand is a file beside this one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import adafuse_core
from adafuse_core import AdaFuseError
from adafuse_integrations.cli import ask, chat, demo
from adafuse_integrations.cli.options import add_ensemble_options

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
        add_ensemble_options(sub)
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
