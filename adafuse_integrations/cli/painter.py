"""Shows words in the colour of the member that proposed them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from adafuse_core import Event, Finished, ReasoningDelta, RoundDone, TextDelta

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
            if isinstance(event, TextDelta):
                text = event.text
            elif isinstance(event, RoundDone):
                self.show(text, event.round.winner.proposers)
                text = ""
            elif isinstance(event, ReasoningDelta):
                self._console.print(Text(event.text, "dim"), end="", soft_wrap=True)
            elif isinstance(event, Finished):
                self._console.print(text)
                return event
        raise AssertionError("a stream ends with Finished")
