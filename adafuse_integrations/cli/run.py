"""`adafuse run`: answers for a file of prompts. `prompt_files` reads and writes the files."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from adafuse_core import ConfigError, Ensemble, EnsembleConfig
from adafuse_core.checks import expect_integer, without_secrets
from adafuse_core.json_lines import strict
from adafuse_integrations.cli.exit_status import DONE, FAILED
from adafuse_integrations.cli.options import add_ensemble_options, add_json_option, build_ensemble, chosen_config
from adafuse_integrations.cli.prompt_files.answers import Answers, open_answers
from adafuse_integrations.cli.prompt_files.lines import STANDARD, Line, read_lines
from adafuse_integrations.cli.prompt_files.records import answered, failed
from adafuse_integrations.cli.prompt_files.template import Template

HELP = "answer a file of prompts, one JSON object a line; exit status 1 if a line could not be answered"

_CONCURRENCY = inspect.signature(Ensemble.batch).parameters["max_concurrency"].default
_ONLY_SPEED = ("speculation", "cache_namespace")  # options that change no answer


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    parser.add_argument(
        "input", help="file with an object a line that has 'prompt' or 'messages', or fields for --template; -: stdin"
    )
    parser.add_argument(
        "output", help="file for the answers, in the order of the input; an unfinished one is continued; -: stdout"
    )
    group = parser.add_argument_group("prompts and answers")
    group.add_argument(
        "--template",
        metavar="FILE_OR_TEXT",
        help="text of the prompts, with names of fields in braces, such as 'Question: {question}'; or a file with it",
    )
    group.add_argument("--raw", action="store_true", help="continue the prompts as they stand, without chat templates")
    group.add_argument("--trace", action="store_true", help="write all rounds of each answer, as field 'rounds'")
    group.add_argument(
        "--max-concurrency",
        type=int,
        default=_CONCURRENCY,
        metavar="INTEGER",
        help=f"prompts that are answered at the same time (default: {_CONCURRENCY})",
    )
    group.add_argument("--restart", action="store_true", help="delete the answers in the output file and begin again")
    add_json_option(parser, "the numbers of answered and failed lines (only with an output file)")


def run(args: argparse.Namespace) -> int:
    """Answer all lines that have no answer yet."""
    expect_integer("max_concurrency", args.max_concurrency, at_least=1)
    _check_files_differ(args.input, args.output)
    for name in ("json", "restart"):
        if getattr(args, name) and args.output == STANDARD:
            raise ConfigError(f"got --{name} with the answers on standard output", hint="name a file for the answers")
    config = chosen_config(args)
    template = None if args.template is None else Template.read(args.template)
    lines = read_lines(args.input, template, raw=args.raw)
    settings = _settings(config, template, raw=args.raw, trace=args.trace)
    try:
        with open_answers(args.output, lines, settings, restart=args.restart) as answers:
            failures = _answer(args, answers)
    except KeyboardInterrupt:
        if args.output != STANDARD:
            print("stopped; the same command continues", file=sys.stderr)
        raise
    _show(args, total=len(lines), earlier=len(lines) - len(answers.todo), failures=failures)
    return FAILED if failures else DONE


def _show(args: argparse.Namespace, *, total: int, earlier: int, failures: int) -> None:
    """Print how many lines were answered."""
    if args.json:
        print(json.dumps({"lines": total, "answered": total - failures, "earlier": earlier, "failed": failures}))
        return
    before = f" (answered by an earlier run: {earlier})" if earlier else ""
    print(f"answered: {total - failures} of {total}{before}, failed: {failures}", file=sys.stderr)


def _answer(args: argparse.Namespace, answers: Answers) -> int:
    """Answer all lines that have no answer yet; returns the number of lines that failed."""
    ready = [line for line in answers.todo if line.problem is None]
    for line in answers.todo:
        if line.problem is not None:
            answers.add(line, failed(line, line.problem))
    failures = len(answers.todo) - len(ready)
    if not ready:
        return failures
    ensemble, console = build_ensemble(args), Console(stderr=True)
    with closing(_outcomes(ensemble, ready, args)) as outcomes:
        for line, outcome in track(outcomes, "answering", len(ready), console=console, disable=not console.is_terminal):
            if isinstance(outcome, Exception):
                failures += 1
                outcome = failed(line, outcome)
            answers.add(line, outcome)
    return failures


def _outcomes(
    ensemble: Ensemble, lines: Sequence[Line], args: argparse.Namespace
) -> Generator[tuple[Line, bytes | Exception]]:
    """Yield each line with the record of its answer, or with its error, as soon as it is done."""
    chat = not args.raw and ensemble.supports_chat()
    cancel = threading.Event()

    def outcome(line: Line) -> bytes | Exception:
        try:
            answer = ensemble.generate(line.messages if chat else line.prompt, cancel=cancel)
            return answered(line, answer, trace=args.trace, logprobs=ensemble.config.generation.logprobs)
        except Exception as error:  # whatever fails, other lines can still be answered
            return error

    with ThreadPoolExecutor(args.max_concurrency) as threads:
        running = {threads.submit(outcome, line): line for line in lines}
        try:
            for done in as_completed(running):
                yield running.pop(done), done.result()
        finally:
            cancel.set()
            threads.shutdown(cancel_futures=True)


def _settings(config: EnsembleConfig, template: Template | None, *, raw: bool, trace: bool) -> dict[str, Any]:
    """What the answers depend on, as plain JSON values."""
    ensemble = config.to_dict()
    for options in (ensemble, ensemble["generation"]):
        for name in _ONLY_SPEED:
            options.pop(name, None)
    settings = {
        "ensemble": without_secrets(ensemble, []),
        "template": None if template is None else template.text,
        "raw": raw,
        "trace": trace,
    }
    plain: dict[str, Any] = json.loads(json.dumps(strict(settings), default=str))
    return plain


def _check_files_differ(source: str, target: str) -> None:
    if STANDARD not in (source, target) and Path(source).resolve() == Path(target).resolve():
        raise ConfigError(f"got {source!r} as input and as output", hint="name another file for the answers")
