"""`adafuse`: the entry point of the command line. Each subcommand is a module of this package."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import adafuse_core
from adafuse_core import AdaFuseError, ConfigError
from adafuse_core.checks import option_hint
from adafuse_integrations.cli import ask, cache, chat, demo, determine, doctor, eval, run, serve
from adafuse_integrations.cli.exit_status import FAILED, MISUSE, STOPPED, status_of

COMMANDS = (demo, ask, chat, run, serve, eval, determine, doctor, cache)

# Where torchao is installed, transformers imports it, and both log warnings that concern neither models nor users.
_NOISY = ("torchao", "torch.utils._pytree")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status, one of `exit_status`."""
    args, unknown = parser().parse_known_args(arguments)
    try:
        _check_unknown(unknown, args)
        _prepare_streams(prints=args.run is not serve.run)
        with _log_on_stderr(logging.WARNING if args.quiet else logging.INFO):
            status: int = args.run(args)
            if sys.stdout is not None:
                sys.stdout.flush()
    except AdaFuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return status_of(error)
    except ModuleNotFoundError as error:
        print(f'error: {error.name} is not installed\nHint: pip install "adafuse[demo]"', file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return STOPPED
    return status


class Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of all others, without the usage, which may have many lines."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit."""
        self.exit(MISUSE, f"error: {message}\nHint: see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` of the parsed arguments is the function of the command."""
    parser = Parser(prog="adafuse", description=adafuse_core.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"adafuse {adafuse_core.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rsplit(".", 1)[-1]
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        sub.add_argument("-q", "--quiet", action="store_true", help="log warnings only, not the progress of loading")
        command.add_options(sub)
        sub.set_defaults(run=command.run)
    return parser


def _prepare_streams(*, prints: bool) -> None:
    """Let characters that a stream can't encode or decode pass as escapes, so that they end no conversation.

    Raises:
        AdaFuseError: Standard output is closed, and the command prints its result.
    """
    if sys.stdout is None and prints:
        raise AdaFuseError("standard output is closed", hint="redirect it to a file or to /dev/null")
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


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
def _log_on_stderr(lowest: int) -> Iterator[None]:
    """Print the core's log from a level on, such as the progress of loading, on standard error."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger, handler = logging.getLogger(adafuse_core.__name__), logging.StreamHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(lowest)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
