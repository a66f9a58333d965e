"""Stop strings: cuts an answer at the first match, and holds back text that may begin one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adafuse_core.events import Event, Finished, MemberDropped, RoundDone, TextDelta


class StopMatcher:
    """Finds stop strings in a stream of text pieces, also across pieces.

    Text that may be the beginning of a stop string is held back until later text shows whether it is one.

    Args:
        stop: Strings that end the answer. The match that ends first counts; if several end at the same character,
            the longest match. The text is cut before the match.

    Attributes:
        hit: The stop string that was found, if any.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Add a piece of text; returns the text that is safe to show."""
        text = self._held + text
        # Compare the ends of matches, not their starts: the answer must not depend on the borders of the pieces.
        hits = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if hits:
            end, _, self.hit = min(hits)
            self._held = ""
            return text[: end - len(self.hit)]
        keep = held_back(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """The held-back text; call it when no more text follows."""
        held, self._held = self._held, ""
        return held


def until_stop(events: Iterator[Event], stop: StopMatcher) -> Iterator[Event]:
    """Cut the text of an answer at a stop string. After it, no events of text, thoughts and calls are yielded.

    Thoughts and tool calls are not searched.
    """
    for event in events:
        if isinstance(event, RoundDone | MemberDropped):
            yield event
        elif stop.hit is not None:
            if isinstance(event, Finished):
                yield replace(event, reason="stop", stop=stop.hit)
        elif isinstance(event, TextDelta):
            if text := stop.feed(event.text):
                yield TextDelta(text=text)
        else:  # a thought, a call or the end: the held-back text can't become a stop string any more
            if text := stop.rest():
                yield TextDelta(text=text)
            yield event


def held_back(text: str, strings: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a prefix of one of the strings."""
    longest = min(len(text), max(map(len, strings), default=0))
    sizes = range(longest, 0, -1)
    return next((size for size in sizes if any(string.startswith(text[-size:]) for string in strings)), 0)
