"""The page: an overview of all tasks, and a section for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from adafuse_core.errors import ConfigError
from adafuse_core.evaluation.report.examples import examples
from adafuse_core.evaluation.report.plots import bars, legend, round_bar
from adafuse_core.evaluation.results import Cost, Results, SystemResults
from adafuse_core.evaluation.statistics import Estimate
from adafuse_core.trace.markup import Child, element, table, written
from adafuse_core.trace.view import style as trace_style

_STYLE = Path(__file__).with_name("style.css")
_FEWEST = 10  # questions for an arrow: of fewer, resampling says too little about chance


def write_report(path: str | Path, results: Sequence[Results]) -> None:
    """Write the report of one or more tasks as one HTML file.

    Raises:
        ConfigError: The file can't be written.
    """
    try:
        Path(path).write_bytes(written(page(results)))
    except OSError as error:
        raise ConfigError(f"can't write the report {str(path)!r}: {error.strerror}") from error


def page(results: Sequence[Results]) -> Element:
    """The whole page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "AdaFuse evaluation"),
        element("style", _STYLE.read_text(encoding="utf-8") + trace_style()),
    )
    body = element("body", element("h1", "AdaFuse evaluation"), *_overview(results), *map(_section, results))
    body.append(_settings(results))
    return element("html", head, body, lang="en")


def _overview(results: Sequence[Results]) -> list[Element]:
    """One row per task with the first metric of each system, if there are several tasks."""
    names = [system.name for system in results[0].systems]
    if len(results) < 2 or any([system.name for system in result.systems] != names for result in results):
        return []
    rows: list[list[Child]] = [
        [
            element("a", result.task.title, href=f"#{result.task.name}"),
            result.first_metric.title,
            *(_score(result, system) for system in result.systems),
        ]
        for result in results
    ]
    return [
        table(["task", "metric", *names], rows),
        element(
            "p",
            "Arrows: the 95% interval of the difference to the best member excludes zero; none for fewer than "
            f"{_FEWEST} questions.",
            class_="note",
        ),
    ]


def _score(result: Results, system: SystemResults) -> Element:
    value = f"{system.scores[result.first_metric.name].value:.1f}"
    if system.name == result.best:
        return element("span", value, class_="best", title="best member")
    return element("span", value, _arrow(result, system))


def _arrow(result: Results, system: SystemResults) -> Element:
    """An arrow for a difference to the best member whose interval excludes zero."""
    lead = system.lead if len(result.questions) >= _FEWEST else None
    difference = None if lead is None else lead.differences[result.first_metric.name]
    if difference is not None and difference.low > 0:
        return element("span", " ▲", class_="up")
    if difference is not None and difference.high < 0:
        return element("span", " ▼", class_="down")
    return element("span")


def _section(result: Results) -> Element:
    count = len(result.questions)
    asked = f"{count} questions" if count == result.total else f"{count} of {result.total} questions"
    form, shots = result.facts.get("form"), result.facts.get("shots")
    chosen = result.notes.get("selection", {})
    part = "".join(f", {name} {value}" for name, value in chosen.items() if value)
    about = f"{asked}, {form} prompts with {shots} examples, data {result.notes.get('data', 'unknown')}{part}"
    return element(
        "section",
        element("h2", result.task.title),
        element("p", about, class_="about"),
        bars(result),
        _scores(result),
        *_meanings(result),
        element("h3", "Cost"),
        _costs(result),
        _note_on_cost(result),
        *examples(result),
        id=result.task.name,
    )


def _scores(result: Results) -> Element:
    heads: list[Child] = ["system", *(metric.title for metric in result.metrics)]
    if result.best is not None:
        heads += [f"{metric.title} minus {result.best}" for metric in result.metrics]
        heads += ["better answers", "worse answers"]
        heads += ["p (McNemar)"] if result.first_metric.kind == "share" else []
    rows = [_score_row(result, system) for system in result.systems]
    return table(heads, [[*row, *[""] * (len(heads) - len(row))] for row in rows])


def _score_row(result: Results, system: SystemResults) -> list[Child]:
    cells: list[Child] = [system.name, *(_interval(system.scores[metric.name]) for metric in result.metrics)]
    if system.lead is not None:
        differences = system.lead.differences
        cells += [_interval(differences[metric.name], "+") for metric in result.metrics]
        cells += [str(system.lead.won), str(system.lead.lost)]
        cells += [] if system.lead.p_value is None else [f"{system.lead.p_value:.2g}"]
    elif system.name == result.best:
        cells += [element("span", "best member", class_="best")]
    return cells


def _interval(estimate: Estimate, sign: str = "") -> Element:
    ends = f" {estimate.low:{sign}.1f} … {estimate.high:{sign}.1f}"
    return element("span", f"{estimate.value:{sign}.1f}", element("small", ends))


def _meanings(result: Results) -> list[Element]:
    found = [element("li", element("b", f"{metric.title}: "), metric.meaning) for metric in result.metrics]
    text = "Small numbers are 95% intervals: Wilson for shares, paired bootstrap for differences, bootstrap otherwise."
    found.append(element("li", text))
    if result.best is not None:
        text = f"The best member, {result.best}, was chosen on these questions by {result.first_metric.title}."
        if result.oracle is not None:
            text += f" The best answer of any member alone, question by question, scores {result.oracle:.1f}."
        found.append(element("li", text))
    return [element("ul", *found, class_="note")]


def _costs(result: Results) -> Element:
    heads = ["system", "words", "ms per word", "CPU ms per word", "tokens read per word", "rounds"]
    heads += ["words per round", "confident rounds", "cut", "refused"]
    return table(heads, [[system.name, *_cost(system.cost)] for system in result.systems])


def _cost(cost: Cost) -> list[Child]:
    numbers = (cost.ms_per_word, cost.cpu_ms_per_word, cost.read_per_word)
    return [
        str(cost.words),
        *("" if number is None else f"{number:.1f}" for number in numbers),
        str(cost.rounds),
        round_bar(cost.round_words),
        "" if cost.confident is None else f"{cost.confident:.0%}",
        str(cost.cut),
        str(cost.refused),
    ]


def _note_on_cost(result: Results) -> Element:
    isolated = result.facts.get("isolate")
    shared = (
        "Times and tokens include the prompts; the systems share nothing."
        if isolated
        else "The prompts were read before the clock started, and a system profits from the beginnings of the answers "
        "of the systems before it."
    )
    if (together := result.facts.get("batch_size", 1)) > 1:
        shared += f" Questions were answered {together} at a time, and each answer has an equal share of the time."
    text = f"{shared} Confident: all members' margins at the first word are at least τ. Cut: at the end of the budget. "
    return element("p", text, legend(), class_="note")


def _settings(results: Sequence[Results]) -> Element:
    """Settings of the systems, versions and hardware."""
    facts, notes = results[0].facts, results[0].notes
    rows = [[name, str(value)] for name, value in {**facts.get("versions", {}), **notes.get("hardware", {})}.items()]
    systems: Mapping[str, Any] = facts.get("systems", {})
    settings: list[list[Child]] = [[name, element("code", _plain(config))] for name, config in systems.items()]
    return element(
        "section",
        element("h2", "Settings"),
        table(["system", "config"], settings),
        table(["version or hardware", ""], rows),
        id="settings",
    )


def _plain(config: Any) -> str:
    """A config as one text, without members' defaults."""
    if not isinstance(config, Mapping):
        return str(config)
    return ", ".join(f"{name}={value!r}" for name, value in config.items() if value not in ({}, None))
