"""Shows words in the colour of the member that proposed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

from rich.console import Console
from rich.text import Text

from adafuse_core import Event, Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta, ToolCallDone

_COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
_AGREED = "bold"


class Painter:
    """Colours for the members of one ensemble.

    Args:
        console: Where to print.
        names: The members, in order.
    """

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self._console = console
        self._names = tuple(names)
        self._colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}

    def legend(self) -> Text:
        """What the colours mean."""
        legend = Text("proposed by ")
        for name in self._names:
            legend.append(name, self._colour[name]).append(", ")
        return legend.append("by all", _AGREED)

    def word(self, text: str, proposers: Sequence[str]) -> Text:
        """A text in the colour of its proposers."""
        everyone = len(proposers) == len(self._names) > 1
        return Text(text, _AGREED if everyone else self._colour.get(proposers[0], "") if proposers else "")

    def show(self, text: str, proposers: Sequence[str]) -> None:
        """Print a text at once, without a line break."""
        self._console.print(self.word(text, proposers), end="", soft_wrap=True)

    def stream(self, events: Iterable[Event]) -> Finished:
        """Print an answer as it comes; returns its last event."""
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
                case Finished():
                    self._console.print(text)
                    for written in event.library_text:
                        note = f"AdaFuse wrote {written.text!r} itself: there was no room for more"
                        self._console.print(Text(note, "dim"))
                    return event
                case ToolCallDelta() | ToolCallDone():
                    raise AssertionError(f"the command line gives no tools, but one was called: {event}")
                case _:
                    assert_never(event)
        raise AssertionError("a stream ends with Finished")
