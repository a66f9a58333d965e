"""When an answer is over, and which of its text is safe to show before."""

from __future__ import annotations

from collections.abc import Sequence

from adafuse_core.rounds import Span


class StopMatcher:
    """Finds stop strings in a growing text, also across spans.

    Text that may be the beginning of a stop string is held back until it is known not to be one.

    Args:
        stop: Strings that end the answer; the first to be complete (the longest of several) and all
            after it is left out.

    Attributes:
        reason: `"stop"` or `"length"` once the answer is over, else None.
        hit: The stop string that ended it, if one did.
    """

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self._stop = stop
        self._held = ""
        self.reason: str | None = None
        self.hit: str | None = None

    def feed(self, span: Span, *, out_of_budget: bool = False) -> str:
        """Take the next span; returns the text that is safe to show now."""
        text = self._held + span.text
        # The first to be complete counts, so that the answer does not depend on where spans end.
        hits = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if hits:
            end, _, self.hit = min(hits)
            self.reason, self._held = "stop", ""
            return text[: end - len(self.hit)]
        if span.ends or out_of_budget:
            self.reason = "stop" if span.ends else "length"
        keep = 0 if self.reason else held_back(text, self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def cut(self) -> str:
        """End the answer for its length; returns what was held back."""
        held, self._held, self.reason = self._held, "", "length"
        return held


def held_back(text: str, strings: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of the strings begins with."""
    longest = min(len(text), max(map(len, strings), default=0))
    return next((size for size in range(longest, 0, -1) if _begins_one(text[-size:], strings)), 0)


def _begins_one(ending: str, strings: Sequence[str]) -> bool:
    return any(string.startswith(ending) for string in strings)
