"""`adafuse chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import assert_never

from rich.console import Console
from rich.text import Text

from adafuse_core import (
    AdaFuseError,
    ContextOverflowError,
    Event,
    Finished,
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
)
from adafuse_integrations.cli.options import build_ensemble
from adafuse_integrations.cli.painter import Painter

HELP = "talk with the ensemble"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this command."""
    parser.add_argument("--system", help="instruction for the whole conversation")


def run(args: argparse.Namespace) -> int:
    """Read questions until the end of input; Ctrl-C stops an answer."""
    ensemble = build_ensemble(args)
    console = Console()
    painter = Painter(console, ensemble.names)
    console.print(painter.legend(), "[dim]· /new starts over, /quit or Ctrl-D ends, Ctrl-C stops an answer[/dim]")
    opening = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(opening)
    while (question := _read(console)) is not None:
        if question == "/new":
            messages = list(opening)
        elif question:
            messages.append({"role": "user", "content": question})
            answer = _Recorder()
            try:
                painter.stream(answer.record(ensemble.stream(messages)))
            except KeyboardInterrupt:
                console.print("[dim] … stopped[/dim]")
            except ContextOverflowError as error:
                console.print(Text(str(error)), Text("starting over", "dim"), sep="\n")
                messages = list(opening)
                continue
            except AdaFuseError as error:
                console.print(Text("error:", "red"), Text(str(error)))
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer.text})
    return 0


class _Recorder:
    """Keeps the text of a stream that passes through."""

    def __init__(self) -> None:
        self.text = ""

    def record(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, unchanged."""
        for event in events:
            match event:
                case TextDelta():
                    self.text += event.text
                case ReasoningDelta() | ToolCallDelta() | ToolCallDone() | RoundDone() | Finished():
                    pass  # no part of what was said
                case _:
                    assert_never(event)
            yield event


def _read(console: Console) -> str | None:
    """The next question; "/quit" and the end of input are None."""
    try:
        question = console.input("[bold green]you>[/bold green] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None
    return None if question in ("/quit", "/exit") else question
