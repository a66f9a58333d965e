"""Is the ensemble better than its members, and than picking the better whole answer?

Held-out questions on mixed knowledge for the small models of the package: facts (one member knows each),
questions that need one fact of each member, and translations with a word from each. An answer is right when it
is the expected text exactly.

    python benchmarks/quality.py --json PATH

Rows: the ensemble (AdaFuse with the defaults), each member's own greedy answer, and `rerank`: of the members'
whole answers the one with the lowest mean NLL over the members.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import threading
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from adafuse_core import Ensemble, Span
from training.curriculum.chats import Question
from training.curriculum.held_out import mixed_questions

KINDS = ("fact", "composed", "translation")
BUDGET = 64  # tokens; the longest expected answer is about half of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--n", type=int, default=600, help="number of questions (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="which questions (default: 0)")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    questions = mixed_questions(args.n, args.seed)
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(args.processes, prepare) as pool:
        marks = pool.map(judge, questions, chunksize=4)
    result = summary(questions, marks)
    result["seconds"] = round(time.monotonic() - started)
    show(result)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def prepare() -> None:
    """Load the models in a worker process."""
    import torch
    import transformers

    global ensemble, singles
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    ensemble = Ensemble().load()
    singles = {name: Ensemble(ensemble.config, strategy="single", member=name) for name in ensemble.names}


def judge(question: Question) -> dict[str, bool]:
    """Whether each contestant answers exactly right."""
    answers = {name: single.generate(question.messages, max_new_tokens=BUDGET).text for name, single in singles.items()}
    answers["rerank"] = rerank(question, list(answers.values()))
    answers["ensemble"] = ensemble.generate(question.messages, max_new_tokens=BUDGET).text
    return {name: text == question.answer for name, text in answers.items()}


def rerank(question: Question, answers: list[str]) -> str:
    """The whole answer with the lowest mean NLL (its end included), averaged over the members."""
    from adafuse_core.chat.messages import conversation

    spans = [Span(text=text, ends=True) for text in dict.fromkeys(answers)]
    totals = [0.0] * len(spans)
    for member in ensemble.members:
        prefix = member.open(
            conversation(question.messages), None, max_word_tokens=24, lookup=False, cancel=threading.Event()
        )
        totals = [total + score for total, score in zip(totals, prefix.score(spans), strict=True)]
        prefix.close()
    return spans[totals.index(min(totals))].text


def summary(questions: list[Question], marks: list[dict[str, bool]]) -> dict[str, object]:
    """Shares with 95% intervals (Wilson), and the ensemble's lead on the same questions (paired, normal)."""
    names = ["ensemble", *(name for name in marks[0] if name not in ("ensemble", "rerank")), "rerank"]
    n = len(marks)
    right = {name: [mark[name] for mark in marks] for name in names}
    by_kind = {
        kind: {
            name: share([r for r, q in zip(right[name], questions, strict=True) if q.kind == kind]) for name in names
        }
        for kind in KINDS
    }
    lead = {}
    for name in names[1:]:
        differences = [a - b for a, b in zip(right["ensemble"], right[name], strict=True)]
        mean = sum(differences) / n
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
        lead[name] = {"mean": mean, "half_width": 1.96 * spread}
    return {
        "n": n,
        "accuracy": {name: share(right[name]) for name in names},
        "interval": {name: half_width(sum(right[name]), n) for name in names},
        "by_kind": by_kind,
        "lead_of_ensemble": lead,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
    }


def share(marks: list[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0


def half_width(right: int, n: int) -> float:
    """Half of the 95% Wilson interval."""
    z, p = 1.959964, right / n
    return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))


def show(result: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Exactly right, held-out mixed questions, n = {result['n']} ({result['seconds']} s)")
    table.add_column("answered by")
    for column in ("all", *KINDS, "ensemble leads by"):
        table.add_column(column, justify="right")
    for name, value in result["accuracy"].items():
        lead = result["lead_of_ensemble"].get(name)
        table.add_row(
            name,
            f"{value:.1%} ± {result['interval'][name]:.1%}",
            *(f"{result['by_kind'][kind][name]:.1%}" for kind in KINDS),
            f"{lead['mean']:+.1%} ± {lead['half_width']:.1%}" if lead else "",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
