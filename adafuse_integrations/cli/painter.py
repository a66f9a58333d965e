"""Terminal output of answers: each word has the colour of the member that proposed it, shared words are neutral."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

from rich.console import Console
from rich.text import Text

from adafuse_core import (
    Event,
    Finished,
    MemberDropped,
    ReasoningDelta,
    RoundDone,
    TextDelta,
    ToolCallDelta,
    ToolCallDone,
)

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
_SHARED = "bold"


class Painter:
    """Prints answers, with one colour per member of the ensemble.

    Args:
        console: Console to print on.
        names: Names of the members, in order.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = tuple(names)
        self._colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return self._names

    def legend(self) -> Text:
        """A line that explains the colours."""
        legend = Text("proposed by ")
        for name in self._names:
            legend.append(name, self._colour[name]).append(", ")
        return legend.append("by all" if len(self._names) < 3 else "by several", _SHARED)

    def word(self, text: str, proposers: Sequence[str]) -> Text:
        """A text in the colour of its proposers."""
        if len(proposers) > 1:
            return Text(text, _SHARED)
        return Text(text, self._colour.get(proposers[0], "") if proposers else "")

    def show(self, text: str, proposers: Sequence[str]) -> None:
        """Print a text without a line break."""
        self._console.print(self.word(text, proposers), end="", soft_wrap=True)

    def stream(self, events: Iterable[Event]) -> Finished:
        """Print an answer while it streams, and return its last event."""
        text = ""
        for event in events:
            match event:
                case TextDelta():
                    text += event.text
                case RoundDone():
                    self.show(text, event.round.proposers)
                    text = ""
                case ReasoningDelta():
                    self._console.print(Text(event.text, "dim"), end="", soft_wrap=True)
                case MemberDropped():
                    self._console.print(Text(f"\n{event.member} failed and was left out: {event.error}", "dim"))
                case Finished():
                    self._console.print(Text(text), soft_wrap=True)
                    for written in event.library_text:
                        note = f"AdaFuse wrote {written.text!r}: the token budget or a context window was too small"
                        self._console.print(Text(note, "dim"))
                    return event
                case ToolCallDelta() | ToolCallDone():
                    raise AssertionError(f"the command line has no tools, but one was called: {event}")
                case _:
                    assert_never(event)
        raise AssertionError("a stream ends with Finished")
