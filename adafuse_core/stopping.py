"""Stop strings: where they end an answer, and which of its text is safe to show before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adafuse_core.events import Event, Finished, RoundDone, TextDelta


class StopMatcher:
    """Finds stop strings in a growing text, also across its pieces.

    Text that may be the beginning of a stop string is held back until it is known not to be one.

    Args:
        stop: Strings that end the answer; the first to be complete (the longest of several) and all
            after it is left out.

    Attributes:
        hit: The stop string that ended the answer, if one did.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Take more text; returns the text that is safe to show now."""
        text = self._held + text
        # The first to be complete counts, so that the answer does not depend on where pieces end.
        hits = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if hits:
            end, _, self.hit = min(hits)
            self._held = ""
            return text[: end - len(self.hit)]
        keep = held_back(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """The text that was held back, once no more text follows it."""
        held, self._held = self._held, ""
        return held


def until_stop(events: Iterator[Event], stop: StopMatcher) -> Iterator[Event]:
    """The events of an answer up to the stop string that ends it: nothing after that but rounds and the end.

    Only text that users see is matched: thoughts and tool calls may contain a stop string.
    """
    for event in events:
        if isinstance(event, RoundDone):
            yield event
        elif stop.hit is not None:
            if isinstance(event, Finished):
                yield replace(event, reason="stop", stop=stop.hit)
        elif isinstance(event, TextDelta):
            if text := stop.feed(event.text):
                yield TextDelta(text=text)
        else:  # a thought, a call or the end: what was held back can't become a stop string any more
            if text := stop.rest():
                yield TextDelta(text=text)
            yield event


def held_back(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of the strings begins with."""
    longest = min(len(text), max(map(len, strings), default=0))
    return next((size for size in range(longest, 0, -1) if _begins_one(text[-size:], strings)), 0)


def _begins_one(ending: str, strings: Sequence[str]) -> bool:
    return any(string.startswith(ending) for string in strings)
