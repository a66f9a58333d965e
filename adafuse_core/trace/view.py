"""Rounds as HTML: words in the colour of their proposers, with the decision behind each. No script is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from adafuse_core.trace.markup import Child, element, table
from adafuse_core.trace.reasons import probability, reason, scored_after

COLORS = 6
_END = "[end]"


def style() -> str:
    """The CSS of traces; it applies only to elements inside `class="adafuse-trace"`."""
    return Path(__file__).with_name("trace.css").read_text(encoding="utf-8")


def legend(members: Sequence[str]) -> Element:
    """What the colours mean."""
    names: list[Child] = ["Proposed by "]
    for name in members:
        names += [element("span", name, class_=color([name], members)), " "]
    names += [element("span", "several", class_="word shared"), " ", element("span", "no member", class_="word none")]
    return element("p", *names, class_="legend")


def words(rounds: Sequence[Mapping[str, Any]], members: Sequence[str]) -> Element:
    """The committed text. A word shows its round when it has the pointer or the keyboard focus."""
    text = element("div", class_="words")
    for number, played in enumerate(rounds, 1):
        shown = visible(played)
        word = shown.lstrip()
        if blanks := shown[: len(shown) - len(word)]:
            text.append(element("span", blanks))
        card = element("span", element("b", f"Round {number}"), *details(played, members), class_="card")
        kind = color(played["proposers"], members)
        text.append(element("span", word, card, class_=kind, tabindex=0))
    return text


def round_list(rounds: Sequence[Mapping[str, Any]], members: Sequence[str]) -> Element:
    """All rounds with candidates and margins."""
    return element("ol", *(element("li", *details(played, members)) for played in rounds))


def details(played: Mapping[str, Any], members: Sequence[str]) -> list[Element]:
    """One round: why its text was committed, the margins, and a table of the candidates."""
    margins = "; ".join(
        f"{name} {', '.join(f'{margin:.2f}' for margin in each)}" for name, each in played["margins"].items() if each
    )
    heads = ["candidate", "proposed by", "score", *(f"p({member})" for member in members)]
    rows = [_candidate(place, played, members) for place in range(len(played["candidates"]))]
    return [
        element("small", f"{', '.join(played['proposers']) or 'no member'}: {reason(played)}", class_="reason"),
        element("small", f"margins: {margins or 'none'}"),
        table(heads, rows, class_="candidates"),
    ]


def color(proposers: Sequence[str], members: Sequence[str]) -> str:
    """The classes of a word: one colour for each member, and a neutral one for words that several members proposed."""
    if len(proposers) != 1:
        return "word shared" if proposers else "word none"
    return f"word member-{members.index(proposers[0]) % COLORS if proposers[0] in members else 0}"


def visible(row: Mapping[str, Any]) -> str:
    """A text with a mark where the answer ends."""
    text: str = row["text"]
    if row["ends"]:
        return f"{text} {_END}" if text else _END
    return text or "∅"


def _candidate(place: int, played: Mapping[str, Any], members: Sequence[str]) -> list[Child]:
    candidate = played["candidates"][place]
    text, after = (each.replace("\n", "⏎") for each in (visible(candidate), scored_after(candidate)))
    shown = element("b", "✓ ", text) if place == played["chosen"] else element("span", text)
    return [
        element("span", shown, element("small", "…", after)) if after else shown,
        element("span", ", ".join(candidate["proposers"]), class_=color(candidate["proposers"], members)),
        _number(candidate["score"]),
        *(_number(probability(candidate, member)) for member in members),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
