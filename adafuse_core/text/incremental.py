"""Encodes a text that grows at its end, at a cost that does not depend on how long it is.

Only a window of the last words is encoded again, from a place where the text can be cut. Its ids are trusted only if
they repeat ids that are known: all of them before the text grows, those of its first word afterwards. In all other
cases the whole text is encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import regex

from adafuse_core.text.ids import Ids, shared_length

_REACHES = (200, 2000)  # characters before the end in which a window begins
_NEAR = 40  # characters before the end: a window that begins no further away serves the grown text too
_WIDTHS = (2, 8)  # words in a window; the first one is the guard


class Window(NamedTuple):
    """The last words of a text.

    Attributes:
        start: Where they begin.
        kept: Number of ids before them.
        guard: Ids of the first of them.
    """

    start: int
    kept: int
    guard: Ids


@dataclass
class EncodedText:
    """A text as its ids: the first `kept` ids of the shorter text that it grew from, then its own.

    Attributes:
        text: The text.
        own: Ids at its end.
        before: All ids of the shorter text.
        kept: Number of those that it has too.
        window: Its last words; None before they are looked for, False if none can be encoded alone.
    """

    text: str
    own: Ids
    before: Ids = ()
    kept: int = 0
    window: Window | bool | None = None

    @cached_property
    def ids(self) -> Ids:
        """All ids. Most texts are only candidates, and never need them."""
        return self.before[: self.kept] + self.own

    def shared_with(self, base: EncodedText) -> int:
        """Length of the common beginning of its ids and another text's; looks at few of them if it grew from that."""
        if self.before is base.ids:
            return self.kept + shared_length(base.ids[self.kept :], self.own)
        return shared_length(base.ids, self.ids)

    def ids_from(self, start: int) -> Ids:
        """All ids but the first ones."""
        return self.own[start - self.kept :] if start >= self.kept else self.ids[start:]


class IncrementalEncoder:
    """The ids of a text that grows.

    Args:
        whole: Encodes a text from its beginning.
        inner: Encodes the end of a text as it would be in that text, if it is cut in the right place.
        cuts: Matches at such places; None if there are none.
    """

    def __init__(
        self, whole: Callable[[str], Ids], inner: Callable[[str], Ids], cuts: regex.Pattern[str] | None
    ) -> None:
        self._whole = whole
        self._inner = inner
        self._cuts = cuts

    def grow(self, base: EncodedText, text: str) -> EncodedText:
        """A text that begins with a written one: exactly what encoding it as a whole gives."""
        if base.window is None:
            base.window = self._find_window(base) or False
        if isinstance(base.window, Window):
            start, kept, guard = base.window
            own = self._inner(text[start:])
            if own[: len(guard)] == guard:
                return EncodedText(text, own, base.ids, kept, base.window if len(text) - start <= _NEAR else None)
        return EncodedText(text, self._whole(text))

    def _find_window(self, written: EncodedText) -> Window | None:
        """The last words, if they are written alone as they are in their place."""
        if self._cuts is None:
            return None
        text, ids = written.text, written.ids
        for reach in _REACHES:
            places = [match.start() for match in self._cuts.finditer(text, max(0, len(text) - reach))]
            for width in _WIDTHS:
                if len(places) < width:
                    break
                start, end = places[-width], places[1 - width]
                alone, guard = self._inner(text[start:]), self._inner(text[start:end])
                kept = len(ids) - len(alone)
                if guard and ids[kept:] == alone and alone[: len(guard)] == guard:
                    return Window(start, kept, guard)
        return None
