"""Rows of several `adafuse eval` runs in one table: the ensemble beside the best member and a further system.

    adafuse eval squad --models A B --out runs/AB --system 'paper: strategy=adafuse' ...
    python benchmarks/eval_rows.py runs/AB/squad runs/AC/squad:111 --json PATH

A row is the folder of a task; `:111` counts its questions from the 111th on. The metric is F1 for SQuAD and exact match
for other tasks. The best member is the one with the best score on the counted questions, which favours it. Differences
are paired, with their 95% intervals. Several rows may have the same questions: over all rows, questions are resampled
with the answers of all rows to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adafuse_core.evaluation.answers import Answer
from adafuse_core.evaluation.journal import ANSWERS, RUN, read_answers
from adafuse_core.evaluation.statistics import RESAMPLES, Estimate, paired_difference
from common import arguments, finish, mean_lead, prepare

METRICS = {"squad": "f1"}  # of other tasks: exact
OURS = "ensemble"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The answers of one run that count.

    Args:
        name: Its folder, as given.
        task: The task.
        values: For each system the metric of each question, 0..100.
        exact: The same in exact match.
        places: The questions, by their position in the data.
        members: Names of the systems that are a member alone.
        seconds: CPU seconds per question, by system.
    """

    name: str
    task: str
    values: Mapping[str, Sequence[float]]
    exact: Mapping[str, Sequence[float]]
    places: Sequence[int]
    members: Sequence[str]
    seconds: Mapping[str, float]

    @property
    def best(self) -> str:
        """The best member."""
        return max(self.members, key=lambda name: float(np.mean(self.values[name])))

    def lead(self, over: str) -> list[float]:
        """By how much the ensemble is better, per question."""
        return [ours - theirs for ours, theirs in zip(self.values[OURS], self.values[over], strict=True)]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("rows", nargs="+", metavar="FOLDER[:FIRST]", help="folder of a task, first counted question")
    parser.add_argument("--other", default="paper", help="a further system to compare with (default: paper)")
    args = parser.parse_args()
    rows = [read(text) for text in args.rows]
    resamples = 200 if args.quick else RESAMPLES
    result = prepare(args) | {"rows": {row.name: summary(row, args.other, resamples) for row in rows}}
    for name, against in (("best member", None), (args.other, args.other)):
        result[f"all questions, minus {name}"] = together(rows, against, resamples).to_dict()
    result["questions"] = sum(len(row.places) for row in rows)
    print(table(result, args.other))
    finish(result, args.json)


def read(text: str) -> Row:
    """The row of `FOLDER` or `FOLDER:FIRST`. Only questions that all systems have answered count."""
    name, colon, first = text.rpartition(":")
    folder, start = (Path(name), int(first) - 1) if colon and first.isdigit() else (Path(text), 0)
    facts = json.loads((folder / RUN).read_text(encoding="utf-8"))["facts"]
    task, systems = facts["task"]["name"], list(facts["systems"])
    answers, _ = read_answers(folder / ANSWERS)
    everyone = sorted({place for place, _ in answers if place >= start})
    places = [place for place in everyone if all((place, system) in answers for system in systems)]
    found = {system: [answers[place, system] for place in places] for system in systems}
    metric = METRICS.get(task, "exact")
    return Row(
        name=text,
        task=task,
        values={system: _metric(given, metric) for system, given in found.items()},
        exact={system: _metric(given, "exact") for system, given in found.items()},
        places=places,
        members=[system for system in systems if facts["systems"][system]["strategy"] == "single"],
        seconds={system: sum(each.cpu_seconds for each in given) / len(places) for system, given in found.items()},
    )


def _metric(answers: Sequence[Answer], metric: str) -> list[float]:
    return [answer.metrics[metric] for answer in answers]


def summary(row: Row, other: str, resamples: int) -> dict[str, Any]:
    """The figures of a row."""
    ours = row.values[OURS]
    return {
        "metric": METRICS.get(row.task, "exact"),
        "questions": len(row.places),
        "members": list(row.members),
        "best": row.best,
        "scores": {system: float(np.mean(values)) for system, values in row.values.items()},
        "exact": {system: float(np.mean(values)) for system, values in row.exact.items()},
        "minus best": paired_difference(ours, row.values[row.best], resamples=resamples).to_dict(),
        "minus other": paired_difference(ours, row.values[other], resamples=resamples).to_dict(),
        "cpu_seconds": dict(row.seconds),
    }


def together(rows: Sequence[Row], against: str | None, resamples: int) -> Estimate:
    """The mean lead over all answers, over the best member of each row or over a system."""
    leads = (
        ((row.task, place), lead)
        for row in rows
        for place, lead in zip(row.places, row.lead(against or row.best), strict=True)
    )
    return mean_lead(leads, resamples)


def table(result: Mapping[str, Any], other: str) -> str:
    """A Markdown table of all rows."""
    lines = [
        f"| row | n | metric | members alone | {other} | **ensemble** | minus best member | minus {other} "
        f"| exact match: best member, {other}, ensemble |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        scores, exact = row["scores"], row["exact"]
        alone = " / ".join(f"{scores[member]:.1f}" for member in row["members"])
        lines.append(
            f"| {name} | {row['questions']} | {row['metric']} | {alone} | {scores[other]:.1f} | **{scores[OURS]:.1f}** "
            f"| {_shown(row['minus best'])} | {_shown(row['minus other'])} "
            f"| {exact[row['best']]:.1f}, {exact[other]:.1f}, {exact[OURS]:.1f} |"
        )
    leads = (result["all questions, minus best member"], result[f"all questions, minus {other}"])
    lines.append(f"| all | {result['questions']} | of the row | | | | {' | '.join(map(_shown, leads))} | |")
    return "\n".join(lines)


def _shown(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:+.1f} ± {(estimate['high'] - estimate['low']) / 2:.1f}"


if __name__ == "__main__":
    main()
