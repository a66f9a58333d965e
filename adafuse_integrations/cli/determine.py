"""`adafuse determine`: which of the models should answer, together or alone, by their answers to a sample."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from adafuse_core import ConfigError, Ensemble
from adafuse_core.evaluation.advice import Advice
from adafuse_core.evaluation.comparisons import Combination
from adafuse_core.evaluation.determine import advice_from, advised, measurement
from adafuse_core.evaluation.journal import Journal
from adafuse_core.evaluation.metrics import METRICS
from adafuse_core.evaluation.questions import Selection
from adafuse_core.evaluation.runner import SET_BY_TASK, Evaluation
from adafuse_core.evaluation.tasks import TASKS
from adafuse_integrations.cli.eval_tables import shown
from adafuse_integrations.cli.exit_status import DONE, STOPPED
from adafuse_integrations.cli.options import (
    add_ensemble_options,
    add_json_option,
    add_option,
    chosen_config,
    given,
    load,
)
from adafuse_integrations.common.options import GENERATION, options_of

HELP = "measure members alone, pairs and all members on a sample of questions, and advise which should answer"

_SELECTION = options_of(Selection)
_EVALUATION = {name: option for name, option in options_of(Evaluation).items() if name in ("form", "shots")}
_TASK = "jsonl"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("data", help="JSONL file with one question per line, or a folder with the file of the task")
    parser.add_argument(
        "--task", choices=TASKS, default=_TASK, help=f"prompts and metrics: {', '.join(TASKS)} (default: {_TASK})"
    )
    parser.add_argument(
        "--metric", choices=METRICS, metavar="NAME", help="metric that decides (default: the first one of the task)"
    )
    parser.add_argument(
        "--folder",
        metavar="FOLDER",
        help="folder of the answers; a later run continues it (default: name of the data with '.determine')",
    )
    parser.add_argument("--out", metavar="FILE", help="write the config of the advised ensemble or member as YAML")
    parser.add_argument("--restart", action="store_true", help="delete the answers of an earlier run in the folder")
    add_json_option(parser, "the figures and the advice")
    group = parser.add_argument_group("questions and prompts")
    for option in (*_SELECTION.values(), *_EVALUATION.values()):
        add_option(group, option)
    add_ensemble_options(parser)


def run(args: argparse.Namespace) -> int:
    """Let all groups of members answer the questions, and print the advice."""
    by_task = given(args, {name: GENERATION[name] for name in SET_BY_TASK})
    for name in by_task:
        setattr(args, name, None)  # replaces the task's value, not the ensemble's
    ensemble = Ensemble(chosen_config(args))
    if args.out and (Path(args.out).is_dir() or not Path(args.out).resolve().parent.is_dir()):
        raise ConfigError(f"can't write --out {args.out!r}", hint="name a file in a folder that exists")
    evaluation = measurement(
        ensemble,
        args.data,
        metric=args.metric,
        task=args.task,
        selection=Selection(**given(args, _SELECTION)),
        generation=by_task,
        **given(args, _EVALUATION),
    )
    _ = evaluation.questions  # an error of the data is found before models are loaded
    folder = args.folder or f"{Path(args.data).resolve().stem}.determine"
    with evaluation.journal(folder, restart=args.restart) as journal:
        try:
            _play(evaluation, journal, ensemble)
        except KeyboardInterrupt:
            kept = evaluation.total - evaluation.missing(journal)
            print(
                f"\nstopped: {kept} of {evaluation.total} answers are kept; the same command continues", file=sys.stderr
            )
            return STOPPED
        advice = advice_from(evaluation.results(journal), ensemble, args.metric)
    metric = METRICS[args.metric] if args.metric else evaluation.used_metrics[0]
    facts = {"task": args.task, "metric": metric.name, "form": evaluation.used_form, "folder": folder, "out": args.out}
    if args.json:
        print(json.dumps({**facts, **advice.to_dict()}, indent=2))
    else:
        print_advice(Console(highlight=False), advice, facts)
    if args.out:
        advised(ensemble, advice).save(args.out)
        print(f"written: {args.out}", file=sys.stderr if args.json else sys.stdout)
    return DONE


def print_advice(console: Console, advice: Advice, facts: dict[str, Any]) -> None:
    """Print the tables and the advice."""
    title = f"{facts['task']}: {advice.questions} questions, {facts['form']} prompts, {METRICS[facts['metric']].title}"
    console.print(Text(title, "bold"))
    console.print(_scores(advice))
    console.print(_answers(advice))
    for note in _notes(advice):
        console.print(Text(note, "dim"))
    console.print()
    console.print(Text(advice.reason, "bold"))


def _play(evaluation: Evaluation, journal: Journal, ensemble: Ensemble) -> None:
    """Let the systems give the missing answers, with a progress bar on a terminal."""
    missing = evaluation.missing(journal)
    if missing:
        load(ensemble)
    console = Console(stderr=True)
    for _ in track(evaluation.play(journal), "answering", missing, console=console, disable=not console.is_terminal):
        pass


def _scores(advice: Advice) -> Table:
    """What members alone and ensembles score."""
    table = Table(Column("answered by", overflow="fold"))
    for name in ("score", "minus its best member", "won / lost"):
        table.add_column(name, justify="right")
    for name, score in advice.members.items():
        style = "bold" if advice.advised == (name,) else ""
        table.add_row(Text(f"{name} alone"), shown(score.scaled(100)), "", "", style=style)
    for one in advice.combinations:
        difference = f"{shown(one.own.difference.scaled(100), '+')} to {one.own.member}"
        test = f"{one.own.won} / {one.own.lost} (p = {one.own.p_value:.2g})"
        cells = [one.name, shown(one.score.scaled(100)), difference, test]
        table.add_row(*map(Text, cells), style="bold" if one.members == advice.advised else "")
    return table


def _answers(advice: Advice) -> Table:
    """What the members' own answers have in common."""
    table = Table(Column("members", overflow="fold"))
    for name in ("union - contradiction", "all wrong (beta)", "most by choice", "its gain"):
        table.add_column(name, justify="right")
    for one in advice.combinations:
        table.add_row(*map(Text, [one.name, _choice(one), *_most(one), f"{100 * one.choice_gain:+.1f}"]))
    return table


def _choice(one: Combination) -> str:
    if one.contradiction is None:
        return f"{100 * one.union:.1f}"
    parts = (one.union, one.contradiction, one.union - one.contradiction)
    return "{:.1f} - {:.1f} = {:.1f}".format(*(100 * part for part in parts))


def _most(one: Combination) -> list[str]:
    if one.beta is None:
        return ["", f"{100 * one.union:.1f}"]
    return [shown(one.beta.scaled(100)), f"{100 * one.union:.1f}, at most {100 * one.most_by_choice:.1f}"]


def _notes(advice: Advice) -> list[str]:
    """What the reader of the tables has to know."""
    beyond = {one.name: one.beyond for one in advice.combinations if one.beyond}
    return [
        "In brackets: 95% intervals, of differences by paired bootstrap; of beta the exact one-sided bounds at 95%.",
        "union: a member is right; contradiction: one is right, and another one is wrong and sure (a probability of "
        "at least one half); most by choice: 1 - beta, the best that a choice of whole answers reaches.",
        *(
            f"{name} answers {count} questions correctly that none of its members does."
            for name, count in beyond.items()
        ),
        *(
            f"{count} of the {advice.questions} questions are too long for {name}, and count as wrong."
            for name, count in advice.refused.items()
        ),
        *(
            f"{count} answers of {name} were cut: the token budget or a context window was full."
            for name, count in advice.cut.items()
        ),
    ]
