"""The tables of `adafuse eval` on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adafuse_core.evaluation.results import Cost, Lead, Results
from adafuse_core.evaluation.statistics import Estimate

_NOTES = (
    "95% intervals in brackets: Wilson for shares, paired bootstrap for differences, bootstrap otherwise.",
    "better/worse: numbers of answers, beside the best member; p of McNemar's exact test.",
    "sure: share of rounds in which all members' first words have a margin of at least tau.",
)


def print_results(console: Console, results: Sequence[Results]) -> None:
    """Print what the systems of each task scored, and what it cost."""
    for each in results:
        console.print(Text(headline(each), "bold"))
        console.print(_scores(each))
        if each.best is not None:
            console.print(Text(_about_best(each), "dim"))
        console.print(_costs(each))
    for note in _NOTES:
        console.print(Text(note, "dim"))


def headline(results: Results) -> str:
    """Task, number of questions, and form of the prompts."""
    count = len(results.questions)
    asked = f"{count}" if count == results.total else f"{count} of {results.total}"
    form, shots = results.facts.get("form"), results.facts.get("shots")
    return f"{results.task.title}: {asked} questions, {form} prompts with {shots} examples"


def shown(estimate: Estimate, sign: str = "") -> str:
    """A value with its interval below it, such as `62.5` and `[55.1, 69.3]`."""
    return f"{estimate.value:{sign}.1f}\n[{estimate.low:{sign}.1f}, {estimate.high:{sign}.1f}]"


def words_per_round(counts: Mapping[str, int]) -> str:
    """Shares of the rounds by the number of words they committed, such as `1:80%  2:12%  3:8%`."""
    total = sum(counts.values())
    return "  ".join(f"{words}:{count / total:.0%}" for words, count in counts.items()) if total else ""


def _about_best(results: Results) -> str:
    oracle = "" if results.oracle is None else f" The best answer of any member alone scores {results.oracle:.1f}."
    return f"best: {results.best}, by {results.first_metric.title} on these questions.{oracle}"


def _scores(results: Results) -> Table:
    table = _table(*(metric.title for metric in results.metrics))
    if results.best is not None:
        table.add_column("minus\nbest", justify="right", no_wrap=True)
        table.add_column("better/\nworse", justify="right", no_wrap=True)
    for system in results.systems:
        row = [system.name, *(shown(system.scores[metric.name]) for metric in results.metrics)]
        row += _lead(system.lead, results.first_metric.name) if results.best is not None else []
        table.add_row(*map(Text, row), style="" if system.is_single else "bold")
    return table


def _lead(lead: Lead | None, metric: str) -> list[str]:
    if lead is None:
        return ["", ""]
    p_value = "" if lead.p_value is None else f"\np = {lead.p_value:.2g}"
    return [shown(lead.differences[metric], "+"), f"{lead.won}/{lead.lost}{p_value}"]


def _costs(results: Results) -> Table:
    table = _table("words", "ms/\nword", "CPU ms/\nword", "tokens read/\nword", "rounds\nby words", "sure", "cut")
    for system in results.systems:
        table.add_row(*map(Text, [system.name, *_cost(system.cost)]))
    return table


def _table(*heads: str) -> Table:
    """A table of systems with columns of numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("system", overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=head != "rounds\nby words")
    return table


def _cost(cost: Cost) -> list[str]:
    numbers = (cost.ms_per_word, cost.cpu_ms_per_word, cost.read_per_word)
    unfinished = f"{cost.cut}" + (f" + {cost.refused} refused" if cost.refused else "")
    return [
        f"{cost.words}",
        *("" if number is None else f"{number:.1f}" for number in numbers),
        words_per_round(cost.round_words),
        "" if cost.confident is None else f"{cost.confident:.0%}",
        unfinished,
    ]
