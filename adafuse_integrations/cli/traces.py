"""The trace of an answer in the terminal and as a file: options of several commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_never

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from adafuse_core import (
    ConfigError,
    Event,
    Finished,
    MemberDropped,
    ReasoningDelta,
    Round,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
    Trace,
)
from adafuse_core.trace.reasons import probability, reason, scored_after
from adafuse_core.trace.trace import SUFFIXES
from adafuse_core.trace.view import visible
from adafuse_integrations.cli.painter import Painter

_EXPLANATION = (
    "Rounds: the text, who proposed it, why it won, and the margins (Δ) of the words that each member drafted."
)


def add_trace_options(parser: argparse.ArgumentParser, *, file: bool) -> None:
    """Add `--trace`, and `--save-trace` if the command gives one answer."""
    help_text = "show why each word was chosen: candidates, probabilities, margins and scores of every round"
    parser.add_argument("--trace", action="store_true", help=help_text)
    if file:
        help_text = "write the trace of the ensemble's answer to a file that ends in .html or .json"
        parser.add_argument("--save-trace", metavar="FILE", help=help_text)


def check_trace_options(args: argparse.Namespace) -> None:
    """Raise a `ConfigError` for a file of an unknown kind, before any model is loaded."""
    if args.save_trace is not None and Path(args.save_trace).suffix not in SUFFIXES:
        raise ConfigError(f"got --save-trace {args.save_trace!r}, expected a file that ends in {' or '.join(SUFFIXES)}")
    if args.save_trace is not None and not Path(args.save_trace).resolve().parent.is_dir():
        raise ConfigError(f"got --save-trace {args.save_trace!r}, whose folder does not exist", hint="create it first")


class TraceRecorder:
    """Records the trace of a stream.

    Args:
        painter: Knows the names and colours of the members.
    """

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        self._rounds: list[Round] = []

    @property
    def trace(self) -> Trace:
        """The trace so far."""
        return Trace.of(self._rounds, self._painter.names)

    def record(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events unchanged."""
        for event in events:
            match event:
                case RoundDone():
                    self._rounds.append(event.round)
                case TextDelta() | ReasoningDelta() | ToolCallDelta() | ToolCallDone() | MemberDropped() | Finished():
                    pass
                case _:
                    assert_never(event)
            yield event

    def print(self, console: Console) -> None:
        """Print all rounds."""
        console.print(shown_trace(self.trace, self._painter))


def shown_trace(trace: Trace, painter: Painter) -> Group:
    """The rounds with their reasons and margins, and a table of the candidates where there were several.

    A `>` marks the chosen candidate and all members are named, so no colour is needed to read it.
    """
    lines: list[RenderableType] = [Text(_EXPLANATION, "dim")]
    for number, played in enumerate(trace.rounds, 1):
        lines.append(_headline(number, played, painter))
        if len(played["candidates"]) > 1:
            lines.append(Padding(_candidates(played, trace, painter), (0, 0, 0, 3)))
    return Group(*lines)


def _headline(number: int, played: Mapping[str, Any], painter: Painter) -> Text:
    """One round: the committed text, who proposed it and why it won, and the margins."""
    margins = [
        f"Δ {name} " + " ".join(f"{margin:.2f}" for margin in each) for name, each in played["margins"].items() if each
    ]
    line = Text(f"{number:>2} ").append(painter.word(_plain(played), played["proposers"]))
    proposers = ", ".join(played["proposers"]) or "no member"
    return line.append(" · ".join([f"  {proposers}: {reason(played)}", *margins]), "dim")


def _candidates(played: Mapping[str, Any], trace: Trace, painter: Painter) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("candidate", "proposed by"):
        table.add_column(heading, overflow="fold")
    for heading in ("score", *(f"p({name})" for name in trace.members)):
        table.add_column(Text(heading), justify="right", overflow="fold")
    for place, candidate in enumerate(played["candidates"]):
        proposers = candidate["proposers"]
        likely = [probability(candidate, name) for name in trace.members]
        after = scored_after(candidate).replace("\n", "⏎")
        shown = Text("> " if place == played["chosen"] else "  ").append(painter.word(_plain(candidate), proposers))
        table.add_row(
            shown.append(f" …{after}", "dim") if after else shown,
            painter.word(", ".join(proposers) or "no member", proposers),
            *("" if value is None else f"{value:.3f}" for value in (candidate["score"], *likely)),
        )
    return table


def _plain(row: Mapping[str, Any]) -> str:
    return visible(row).strip(" ").replace("\n", "⏎")
