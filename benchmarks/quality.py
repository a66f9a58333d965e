"""Accuracy of the ensemble, of its members, and of choosing between the members' whole answers.

    python benchmarks/quality.py --json PATH

Held-out questions for the small models of the package: facts (known by one member), questions that need one fact from
each member, and translations with a word from each member. An answer is correct if it equals the expected text. Rows:
the ensemble (the default rule), `paper` (the paper's rule, `strategy="adafuse"`), each member's greedy answer, and
`rerank`: the member's answer with the lowest mean NLL per token over the members. `--pair` asks another pair of models,
see training/pairs/README.md.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from typing import Any

from adafuse_core import Ensemble, Span
from common import arguments, finish, prepare, show
from common import ensemble as loaded
from training.curriculum import Question
from training.pairs import PAIRS

KINDS = ("fact", "composed", "translation")
BUDGET = 64  # tokens, about twice the longest expected answer

Marks = dict[str, bool]  # whether the answer is correct, by system


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--n", type=int, default=600, help="number of questions (default: 600; 6 if quick)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the questions (default: 0)")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="number of processes (default: up to 2)"
    )
    parser.add_argument("--pair", choices=PAIRS, default="small", help="the models and their questions")
    args = parser.parse_args()
    result = prepare(args) | {"pair": args.pair}
    questions = PAIRS[args.pair].questions(6 if args.quick else args.n, args.seed)
    started = time.monotonic()
    marks = judge_all(questions, args)
    result |= summary(questions, marks) | {"seconds": round(time.monotonic() - started)}
    show_shares(result)
    finish(result, args.json)


def judge_all(questions: Sequence[Question], args: argparse.Namespace) -> list[Marks]:
    """The marks of all questions, in order. The questions are dealt to the processes in turn."""
    count = 1 if args.quick else args.processes
    if count == 1:
        return judge(questions, args)
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        judged = pool.starmap(judge, [(questions[first::count], args) for first in range(count)])
    return [judged[index % count][index // count] for index in range(len(questions))]


def judge(questions: Sequence[Question], args: argparse.Namespace) -> list[Marks]:
    """For each question, whether each system answers correctly."""
    prepare(args)
    ensemble = loaded(PAIRS[args.pair].models, args.device, "float32", "guessing")
    paper = Ensemble(ensemble.config, strategy="adafuse")
    singles = {name: Ensemble(ensemble.config, strategy="single", member=name) for name in ensemble.names}
    marks = []
    for question in questions:
        texts = {name: one.generate(question.messages, max_new_tokens=BUDGET).text for name, one in singles.items()}
        texts["rerank"] = rerank(paper, question, list(texts.values()))
        for name, together in (("ensemble", ensemble), ("paper", paper)):
            texts[name] = together.generate(question.messages, max_new_tokens=BUDGET).text
        marks.append({name: text == question.answer for name, text in texts.items()})
    return marks


def rerank(paper: Ensemble, question: Question, answers: Sequence[str]) -> str:
    """The whole answer with the lowest mean NLL per token (its end included), averaged over the members."""
    spans = [Span(text=text, ends=True) for text in dict.fromkeys(answers)]
    return min(paper.score(question.messages, spans), key=lambda scored: scored.value).span.text


def summary(questions: Sequence[Question], marks: Sequence[Marks]) -> dict[str, Any]:
    """Accuracy with 95% Wilson intervals, and the paired difference between the ensemble and each other system."""
    singles = [name for name in marks[0] if name not in ("ensemble", "paper", "rerank")]
    names = ["ensemble", "paper", *singles, "rerank"]
    right = {name: [mark[name] for mark in marks] for name in names}
    indices = {kind: [i for i, question in enumerate(questions) if question.kind == kind] for kind in KINDS}
    return {
        "n": len(marks),
        "accuracy": {name: share(right[name]) for name in names},
        "interval": {name: half_width(sum(right[name]), len(marks)) for name in names},
        "by_kind": {kind: {name: share([right[name][i] for i in indices[kind]]) for name in names} for kind in KINDS},
        "lead_of_ensemble": {name: lead(right["ensemble"], right[name]) for name in names[1:]},
    }


def share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0


def half_width(right: int, n: int) -> float:
    """Half of the 95% Wilson interval."""
    z, p = 1.959964, right / n
    return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


def lead(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, float]:
    """The mean paired difference, with its 95% half-width (normal)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n, mean = len(differences), sum(differences) / len(differences)
    standard_error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return {"mean": mean, "half_width": 1.96 * standard_error}


def show_shares(result: dict[str, Any]) -> None:
    rows = []
    for name, value in result["accuracy"].items():
        ahead = result["lead_of_ensemble"].get(name)
        rows.append(
            [
                name,
                f"{value:.1%} ± {result['interval'][name]:.1%}",
                *(f"{result['by_kind'][kind][name]:.1%}" for kind in KINDS),
                f"{ahead['mean']:+.1%} ± {ahead['half_width']:.1%}" if ahead else "",
            ]
        )
    title = f"Exactly right, held-out mixed questions, n = {result['n']} ({result['seconds']} s)"
    show(title, ["answered by", "all", *KINDS, "ensemble leads by"], rows)


if __name__ == "__main__":
    main()
