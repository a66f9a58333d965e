"""The experiments of the paper in miniature: all strategies and the main ablations, on pairs and triples of models.

    python benchmarks/miniature.py --out FOLDER --json PATH --report PATH

Rows are teams of models with questions: the small models of the package, a pair that is confidently wrong, and a very
unequal pair (`training/pairs`); and with `--models` and `--data`, all pairs of given models, and all of them together,
on SQuAD and TriviaQA (see `adafuse eval`). All systems answer the same questions. The report is a Markdown table: the
score of each system in each row, and how far it is from the best member alone, with the paired 95% interval. Times are
those of batches. A run that was stopped continues where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafuse_core import Ensemble, MemberConfig
from adafuse_core.evaluation.questions import Selection
from adafuse_core.evaluation.results import Results
from adafuse_core.evaluation.runner import Evaluation
from adafuse_core.evaluation.systems import systems_of
from common import arguments, finish, folder_of, prepare
from training.pairs import PAIRS

PAPER = {"strategy": "adafuse"}
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "default, 1 hypothesis": {"beams": 1},
    "default, 5 hypotheses": {"beams": 5},
    "paper (tau 0.7, M 3, B 3)": PAPER,
    "paper, B 1": PAPER | {"branches": 1},
    "paper, B 5": PAPER | {"branches": 5},
    "paper, tau 0.3": PAPER | {"tau": 0.3},
    "paper, tau 0.9": PAPER | {"tau": 0.9},
    "paper, M 1": PAPER | {"max_words": 1},
    "paper, M 5": PAPER | {"max_words": 5},
    "paper, scores per word": PAPER | {"scoring": "word", "pool": "power"},
    "paper, sums over 8 words": PAPER | {"scoring": "sum", "look_ahead": 8},
    "spans of 4 words": {"strategy": "span"},
    "token union": {"strategy": "token_union"},
    "selective": {"strategy": "selective"},
    "rerank by NLL": {"strategy": "rerank", "rule": "nll"},
    "rerank by similarity": {"strategy": "rerank", "rule": "mbr"},
    "panel": {"strategy": "panel"},
}
THREE = {"consensus": {"strategy": "consensus"}}  # needs three members
DEFAULT, TASKS = "default", ("squad", "triviaqa")
MOST = 600  # questions for the small models


@dataclass(frozen=True, kw_only=True)
class Row:
    """A team of models, and the questions that it is asked."""

    name: str
    models: Sequence[str]
    task: str
    data: Path
    form: str


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers; a later run continues it")
    parser.add_argument("--report", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--n", type=int, default=120, help="questions per row (default: 120; 3 if quick)")
    parser.add_argument("--models", nargs="+", default=[], help="folders or names of models, for further rows")
    parser.add_argument("--data", type=Path, help="folder with files for the tasks squad and triviaqa")
    parser.add_argument("--batch-size", type=int, default=8, help="questions that are answered together (default: 8)")
    parser.add_argument("--rows", nargs="+", help="only rows with these names")
    args = parser.parse_args()
    if bool(args.models) != bool(args.data):
        parser.error("--models and --data go together")
    result = prepare(args) | {"rows": {}}
    count = 3 if args.quick else args.n
    for row in rows(args):
        if args.rows and row.name not in args.rows:
            continue
        result["rows"][row.name] = answered(row, count, args).to_dict()
        print(table(row.name, result["rows"][row.name]), flush=True)
        if args.report:
            args.report.parent.mkdir(parents=True, exist_ok=True)
            args.report.write_text(report(result), encoding="utf-8")
    finish(result, args.json)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    """The rows: small pairs, then the given models."""
    for name, pair in PAIRS.items():
        data = args.out / "questions" / f"{name}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        lines = (
            {"prompt": question.messages[-1]["content"], "answer": [question.answer]}  # examples would confuse them
            for question in pair.questions(MOST)
        )
        data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        yield Row(name=f"{name} pair", models=pair.models, task="jsonl", data=data, form="chat")
    teams = [team for size in (2, 3) for team in itertools.combinations(args.models, size)]
    for team, task in itertools.product(teams, TASKS):
        name = f"{' + '.join(Path(model).name for model in team)}, {task}"
        yield Row(name=name, models=team, task=task, data=args.data, form="raw")


def answered(row: Row, count: int, args: argparse.Namespace) -> Results:
    """The results of a row, or of its missing answers."""
    members = [MemberConfig(model=folder_of(model), dtype="float32", device=args.device) for model in row.models]
    further = {**SYSTEMS, **(THREE if len(members) > 2 else {})}
    with Ensemble.from_pretrained(*members) as ensemble:
        evaluation = Evaluation(
            systems=systems_of(ensemble, further, name=DEFAULT),
            task=row.task,
            data=row.data,
            selection=Selection(limit=count),
            form=row.form,
            trace=False,
            batch_size=args.batch_size,
        )
        return evaluation.run(args.out / row.name.replace(" ", "_"))


def report(result: Mapping[str, Any]) -> str:
    """The Markdown report of the rows so far."""
    head = ["# The paper in miniature\n", verdict(result["rows"]), f"\n`{result['command']}`, {result['hardware']}.\n"]
    return "\n".join([*head, *(table(name, row) for name, row in result["rows"].items())])


def verdict(found: Mapping[str, Any]) -> str:
    """Where the default rule is better than the best member alone, and where it is not."""
    places: dict[str, list[str]] = {"below": [], "within": [], "above": []}
    for name, row in found.items():
        difference = row["systems"][DEFAULT]["lead"]["differences"][row["metrics"][0]]
        place = "below" if difference["high"] < 0 else "above" if difference["low"] > 0 else "within"
        places[place].append(name)
    texts = {place: ", ".join(names) or "no row" for place, names in places.items()}
    return (
        f"The default rule is worse than the best member, by more than the 95% interval, in: {texts['below']}. It "
        f"differs by less in: {texts['within']}. It is better, by more than the interval, in: {texts['above']}."
    )


def table(name: str, row: Mapping[str, Any]) -> str:
    """A Markdown table of one row."""
    metric = row["metrics"][0]
    lines = [
        f"\n## {name}: {metric}, n = {row['questions']}\n",
        f"| | {metric} | minus {row['best']} | CPU ms per word |\n|---|---|---|---|",
    ]
    for system, found in row["systems"].items():
        lead, cost = found["lead"], found["cost"]["cpu_ms_per_word"]
        ahead = "" if lead is None else "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(**lead["differences"][metric])
        score = found["scores"][metric]["value"]
        lines.append(f"| {system} | {score:.1f} | {ahead} | {'' if cost is None else f'{cost:.0f}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
