"""Answers in which an ensemble and the best member differ, with their traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from adafuse_core.evaluation.questions import Question
from adafuse_core.evaluation.results import Results, SystemResults
from adafuse_core.trace.markup import Child, element, table
from adafuse_core.trace.view import color, round_list, visible

MOST = 20  # examples of each kind
_LONGEST = 4_000  # characters of a passage
_MOST_GOLDS = 8


def examples(results: Results) -> list[Element]:
    """For each ensemble the answers that are better than those of the best member, and those that are worse."""
    if results.best is None:
        return []
    found: list[Element] = []
    for system in results.systems:
        if system.lead is not None and not system.is_single:
            found += [_kind(results, system, better=True), _kind(results, system, better=False)]
    return [element("h3", f"Answers that differ from {results.best}"), *found] if found else []


def _kind(results: Results, system: SystemResults, *, better: bool) -> Element:
    """One list of examples, the largest differences first."""
    best = results.best or ""

    def gain(question: Question) -> float:
        difference = results.value(question, system.name) - results.value(question, best)
        return difference if better else -difference

    chosen = sorted((question for question in results.questions if gain(question) > 0), key=gain, reverse=True)
    shown = f", {MOST} shown" if len(chosen) > MOST else ""
    word, kind = ("better", "up") if better else ("worse", "down")
    title = element(
        "summary", element("b", system.name), f" is {word}: ", element("span", f"{len(chosen)}", class_=kind), shown
    )
    return element("details", title, *(_example(results, system.name, question) for question in chosen[:MOST]))


def _example(results: Results, system: str, question: Question) -> Element:
    context = [element("p", _cut(question.context), class_="context")] if question.context else []
    golds = list(question.golds[:_MOST_GOLDS]) + (["…"] if len(question.golds) > _MOST_GOLDS else [])
    rows = [_answer_row(results, question, each.name, system) for each in results.systems]
    return element(
        "article",
        element("p", element("small", f"{question.label} "), question.text, class_="question"),
        *context,
        element("p", element("small", "accepted "), " · ".join(golds), class_="gold"),
        table(["system", results.first_metric.title, "answer"], rows, class_="answers"),
        *_trace(results, (question.place, system)),
    )


def _answer_row(results: Results, question: Question, name: str, system: str) -> list[Child]:
    answer, value = results.answers[question.place, name], results.value(question, name)
    text = answer.text if answer.error is None else f"refused: {answer.error}"
    kind = "right" if value >= 100 else "wrong" if value <= 0 else "partly"
    label: Child = element("b", name) if name == system else name
    return [label, element("span", f"{value:.0f}", class_=kind), element("span", text, class_="text")]


def _trace(results: Results, key: tuple[int, str]) -> list[Element]:
    """The words as they were committed, each with its proposers, and the candidates of every round."""
    trace, members = results.traces(key), list(results.answers[key].prompt_tokens)
    if not trace:
        return []
    words = element("p", element("small", "rounds "), class_="trace")
    words.extend(_committed(played, members) for played in trace)
    rounds = element(
        "details", element("summary", "all rounds with candidates and margins"), round_list(trace, members)
    )
    return [element("div", words, rounds, class_="adafuse-trace")]


def _committed(played: Mapping[str, Any], members: Sequence[str]) -> Element:
    proposers = played["proposers"]
    title = f"proposed by {', '.join(proposers) or 'no member'}"
    return element("span", visible(played).replace("\n", "⏎"), class_=color(proposers, members), title=title)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
