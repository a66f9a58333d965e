"""Plots as inline SVG: bars with intervals, and shares of rounds by their words."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from adafuse_core.evaluation.results import Results, SystemResults
from adafuse_core.trace.markup import element

_LEFT, _WIDTH, _ROW, _RIGHT = 190, 520, 30, 150  # pixels: names, bars, a row, values
_BAR_WIDTH, _BAR_HEIGHT = 160, 12
_MOST_SHOWN = 3  # words of a round; longer rounds are counted together
_NAME_LENGTH = 26  # characters


def bars(results: Results) -> Element:
    """One bar per system with the first metric, its interval, and a line at the best member."""
    metric = results.first_metric
    height = _ROW * len(results.systems) + 26
    drawn = element(
        "svg",
        element("title", f"{metric.title} of all systems with 95% intervals"),
        viewBox=f"0 0 {_LEFT + _WIDTH + _RIGHT} {height}",
        class_="bars",
        role="img",
    )
    for percent in range(0, 101, 20):
        drawn.append(_vertical(percent, height - 20, "grid"))
        drawn.append(element("text", str(percent), x=_at(percent), y=height - 6, class_="tick"))
    for place, system in enumerate(results.systems):
        _add_bar(drawn, system, metric.name, _ROW * place)
    best = next((system for system in results.systems if system.name == results.best), None)
    if best is not None:
        drawn.append(_vertical(best.scores[metric.name].value, height - 20, "best-line"))
    return element("figure", element("figcaption", metric.title), drawn)


def round_bar(counts: Mapping[str, int]) -> Element:
    """A bar with the shares of rounds by the number of words they committed; the shares are in its tooltip."""
    total = sum(counts.values())
    named = ", ".join(f"{words}: {count} ({count / total:.0%})" for words, count in counts.items())
    drawn = element(
        "svg", element("title", named), viewBox=f"0 0 {_BAR_WIDTH} {_BAR_HEIGHT}", class_="rounds", role="img"
    )
    start = 0.0
    for words, count in _grouped(counts).items():
        width = _BAR_WIDTH * count / total
        drawn.append(
            element("rect", x=f"{start:.2f}", y=0, width=f"{width:.2f}", height=_BAR_HEIGHT, class_=f"words-{words}")
        )
        start += width
    return element("span", drawn, element("small", f" {named}"))


def legend() -> Element:
    """What the colors of `round_bar` mean."""
    names = {0: "only the end", 1: "1 word", 2: "2 words", _MOST_SHOWN: f"{_MOST_SHOWN} or more words"}
    marks = [element("span", element("i", class_=f"words-{words}"), name) for words, name in names.items()]
    return element("span", "Rounds by their words: ", *marks, class_="legend")


def _grouped(counts: Mapping[str, int]) -> dict[int, int]:
    grouped: dict[int, int] = {}
    for words, count in counts.items():
        group = min(int(words), _MOST_SHOWN)
        grouped[group] = grouped.get(group, 0) + count
    return dict(sorted(grouped.items()))


def _add_bar(drawn: Element, system: SystemResults, metric: str, top: int) -> None:
    estimate, middle = system.scores[metric], top + _ROW / 2
    kind = "single" if system.is_single else "together"
    width = max(0.0, _at(estimate.value) - _LEFT)
    drawn.append(element("text", _short(system.name), x=_LEFT - 10, y=middle + 4, class_="name"))
    drawn.append(element("rect", x=_LEFT, y=top + 6, width=f"{width:.1f}", height=_ROW - 12, rx=2, class_=kind))
    low, high = _at(estimate.low), _at(estimate.high)
    whisker = f"M{low:.1f} {middle - 4}v8 M{low:.1f} {middle}H{high:.1f} M{high:.1f} {middle - 4}v8"
    drawn.append(element("path", d=whisker, class_="whisker"))
    shown = f"{estimate.value:.1f}  ({estimate.low:.1f} … {estimate.high:.1f})"
    drawn.append(element("text", shown, x=_LEFT + _WIDTH + 12, y=middle + 4, class_="value"))


def _vertical(value: float, height: int, kind: str) -> Element:
    return element("line", x1=f"{_at(value):.1f}", x2=f"{_at(value):.1f}", y1=0, y2=height, class_=kind)


def _at(value: float) -> float:
    """The horizontal place of a score from 0 to 100."""
    return _LEFT + _WIDTH * max(0.0, min(100.0, value)) / 100


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
