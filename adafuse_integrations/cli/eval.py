"""`adafuse eval`: compares the ensemble with its members on questions of a file, with intervals and a report."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adafuse_core import ConfigError, Ensemble
from adafuse_core.checks import expect_choice, expect_encodable
from adafuse_core.evaluation.journal import Journal
from adafuse_core.evaluation.questions import Selection
from adafuse_core.evaluation.report import write_report
from adafuse_core.evaluation.results import Results
from adafuse_core.evaluation.runner import SET_BY_TASK, Evaluation
from adafuse_core.evaluation.systems import System, systems_of
from adafuse_core.evaluation.tasks import TASKS
from adafuse_integrations.cli.eval_tables import print_results
from adafuse_integrations.cli.exit_status import DONE, STOPPED
from adafuse_integrations.cli.harness import HARNESS_ONLY, add_harness_options, refuse, run_harness
from adafuse_integrations.cli.options import (
    add_ensemble_options,
    add_json_option,
    add_option,
    chosen_config,
    given,
    load,
)
from adafuse_integrations.common.options import ENSEMBLE, GENERATION, MEMBER_DEFAULTS, options_of

HELP = "compare the ensemble with its members on questions of a file, and write tables and a report"
REPORT = "report.html"

_SELECTION = options_of(Selection)
_EVALUATION = {
    name: option
    for name, option in options_of(Evaluation).items()
    if name in ("form", "shots", "trace", "isolate", "batch_size")
}
_OWN = ("data", "out", "system", "metric", "restart", "singles")  # without a meaning for --harness
_COMMA = re.compile(r",(?=\s*[\w-]+\s*=)")  # before the next option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=f"tasks: {', '.join(TASKS)}; or those of --harness")
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="JSONL file with one question per line, or a folder with a file for each task. Nothing is downloaded.",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder of answers, results and report; a later run continues it"
    )
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="'NAME: OPTION=VALUE, ...'",
        help="a further system: the ensemble with other options, such as 'paper: strategy=adafuse'",
    )
    parser.add_argument(
        "--singles", action=argparse.BooleanOptionalAction, help="whether each member also answers alone (default: yes)"
    )
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="a further metric, such as spbleu or numeric"
    )
    parser.add_argument(
        "--restart", action="store_true", default=None, help="delete the answers of an earlier run in the folder"
    )
    add_json_option(parser, "the results")
    group = parser.add_argument_group("questions and prompts")
    for option in (*_SELECTION.values(), *_EVALUATION.values()):
        add_option(group, option)
    add_harness_options(parser)
    add_ensemble_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run or resume all tasks, then print the tables and write the report."""
    if args.harness:
        refuse(args, [name for name in (*_OWN, *_SELECTION, *_EVALUATION) if name != "limit"], "--harness")
        return run_harness(args)
    refuse(args, HARNESS_ONLY, "tasks of this package", hint="add --harness")
    _check_required(args)
    generation = _taken(args, SET_BY_TASK)
    ensemble = Ensemble(chosen_config(args))
    systems = systems_of(ensemble, _named(map(parsed_system, args.system)), singles=args.singles is not False)
    evaluations = _evaluations(args, systems, generation)
    folder = Path(args.out)
    with ExitStack() as stack:
        journals = [
            stack.enter_context(evaluation.journal(folder / evaluation.rules.name, restart=bool(args.restart)))
            for evaluation in evaluations
        ]
        if any(evaluation.missing(journal) for evaluation, journal in zip(evaluations, journals, strict=True)):
            load(ensemble)
        try:
            _play(evaluations, journals)
        except KeyboardInterrupt:
            return _stopped(evaluations, journals)
        results = [evaluation.results(journal) for evaluation, journal in zip(evaluations, journals, strict=True)]
    write_report(folder / REPORT, results)
    _show(args, results, folder / REPORT)
    return DONE


def _check_required(args: argparse.Namespace) -> None:
    for task in args.tasks:
        expect_choice("task", task, TASKS)
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise ConfigError(f"--{name} is missing", hint="see --help")


def parsed_system(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of `--system 'NAME: OPTION=VALUE, OPTION=VALUE'`. Values are YAML, or texts for text options.

    Raises:
        ConfigError: The text has another form.
    """
    expect_encodable("--system", text)
    name, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in _COMMA.split(rest) if rest.strip() else []:
        written, equals, value = part.partition("=")
        option = written.strip().replace("-", "_")
        if not equals or not option or option in options:
            raise _misread(text)
        options[option] = _value(option, value.strip(), text)
    if not colon or not name.strip() or not options:
        raise _misread(text)
    return name.strip(), options


def _named(systems: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The options of systems by name; two systems have two names."""
    named: dict[str, dict[str, Any]] = {}
    for name, options in systems:
        if name in named:
            raise ConfigError(f"two systems are named {name!r}", hint="give each --system a name of its own")
        named[name] = options
    return named


def _value(name: str, text: str, given_system: str) -> Any:
    option = {**MEMBER_DEFAULTS, **ENSEMBLE}.get(name)
    if option is not None and option.type in (str, str | None):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _misread(given_system) from error


def _misread(text: str) -> ConfigError:
    return ConfigError(
        f"got --system {text!r}, expected 'NAME: OPTION=VALUE, OPTION=VALUE', each option once",
        hint="such as --system 'paper: strategy=adafuse'",
    )


def _taken(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Generation options that replace those of the task, taken out of the options of the ensemble."""
    options = given(args, {name: GENERATION[name] for name in names})
    for name in options:
        setattr(args, name, None)
    return options


def _evaluations(
    args: argparse.Namespace, systems: Sequence[System], generation: Mapping[str, Any]
) -> list[Evaluation]:
    """The evaluations of all tasks. Their data is read, so that a missing file is an error before models are loaded."""
    tasks = list(dict.fromkeys(args.tasks))
    if len(tasks) > 1 and Path(args.data).is_file():
        raise ConfigError(f"got one file for {len(tasks)} tasks", hint="give a folder with a file for each task")
    options = {"selection": Selection(**given(args, _SELECTION)), **given(args, _EVALUATION)}
    evaluations = [
        Evaluation(systems=systems, task=task, data=args.data, metrics=args.metric, generation=generation, **options)
        for task in tasks
    ]
    for evaluation in evaluations:
        _ = evaluation.questions  # raises an error if there are none
    return evaluations


def _play(evaluations: Sequence[Evaluation], journals: Sequence[Journal]) -> None:
    """Let the systems answer, with a progress bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        for evaluation, journal in zip(evaluations, journals, strict=True):
            done = evaluation.total - evaluation.missing(journal)
            bar = progress.add_task(evaluation.rules.name, total=evaluation.total, completed=done)
            for _ in evaluation.play(journal):
                progress.advance(bar)


def _stopped(evaluations: Sequence[Evaluation], journals: Sequence[Journal]) -> int:
    missing = sum(evaluation.missing(journal) for evaluation, journal in zip(evaluations, journals, strict=True))
    total = sum(evaluation.total for evaluation in evaluations)
    print(f"\nstopped: {total - missing} of {total} answers are kept; the same command continues", file=sys.stderr)
    return STOPPED


def _show(args: argparse.Namespace, results: Sequence[Results], report: Path) -> None:
    if args.json:
        print(json.dumps({"tasks": [result.to_dict() for result in results], "report": str(report)}, indent=2))
        return
    console = Console(highlight=False)
    print_results(console, results)
    console.print(f"[dim]report:[/dim] {report}")
