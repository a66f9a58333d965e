"""`adafuse chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import assert_never

from rich.console import Console
from rich.text import Text

from adafuse_core import (
    AdaFuseError,
    ContextOverflowError,
    Event,
    Finished,
    MemberDropped,
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
)
from adafuse_integrations.cli.exit_status import DONE
from adafuse_integrations.cli.options import add_ensemble_options, build_ensemble
from adafuse_integrations.cli.painter import Painter
from adafuse_integrations.cli.traces import TraceRecorder, add_trace_options

HELP = "chat with the ensemble in the terminal"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    add_trace_options(parser, file=False)


def run(args: argparse.Namespace) -> int:
    """Answer questions until the end of the input. Ctrl-C stops an answer, and at the prompt the conversation."""
    ensemble = build_ensemble(args)
    console = Console()
    painter = Painter(console, ensemble.names)
    console.print(painter.legend(), "[dim]· /new: new conversation, /quit or Ctrl-D: end, Ctrl-C: stop an answer[/dim]")
    system = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(system)
    while (question := _read(console)) is not None:
        if question == "/new":
            messages = list(system)
        elif question:
            messages.append({"role": "user", "content": question})
            answer, recorder = _Recorder(), TraceRecorder(painter)
            try:
                painter.stream(answer.record(recorder.record(ensemble.stream(messages))))
            except KeyboardInterrupt:
                console.print("[dim] … stopped[/dim]")
            except ContextOverflowError as error:
                console.print(Text(str(error)), Text("a new conversation starts", "dim"), sep="\n")
                messages = list(system)
                continue
            except AdaFuseError as error:
                console.print(Text("error:", "red"), Text(str(error)))
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer.text})
            if args.trace:
                recorder.print(console)
    return DONE


class _Recorder:
    """Records the text of a stream."""

    def __init__(self) -> None:
        self.text = ""

    def record(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events unchanged."""
        for event in events:
            match event:
                case TextDelta():
                    self.text += event.text
                case ReasoningDelta() | ToolCallDelta() | ToolCallDone() | RoundDone() | MemberDropped() | Finished():
                    pass  # not part of the conversation
                case _:
                    assert_never(event)
            yield event


def _read(console: Console) -> str | None:
    """The next question; None for "/quit" or the end of the input."""
    if sys.stdin is None:  # closed before the program began
        return None
    try:
        question = console.input("[bold green]you>[/bold green] ").strip()
    except EOFError:
        console.print()
        return None
    return None if question in ("/quit", "/exit") else question
