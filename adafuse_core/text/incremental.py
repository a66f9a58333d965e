"""Encodes a growing text at a cost that does not depend on its length.

Only a window of the last words is encoded again, starting at a safe cut. The window is used only if it reproduces the
known ids: before the text grows, all ids of the window; afterwards, the ids of its first word. Otherwise the whole text
is encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import regex

from adafuse_core.text.ids import Ids, shared_length

_SEARCHED = (200, 2000)  # characters at the end of the text that are searched for cuts
_REUSED = 40  # characters: a window of at most this length is reused for the grown text
_WIDTHS = (2, 8)  # words in a window, its first word (the guard) included


class Window(NamedTuple):
    """The last words of a text."""

    start: int  # character offset of the window
    ids_before: int  # number of ids before the window
    guard: Ids  # ids of the window's first word


@dataclass
class EncodedText:
    """The ids of a text: the first `kept` ids of the shorter text that it grew from, then `tail`."""

    text: str
    tail: Ids
    base: Ids = ()  # all ids of the shorter text
    kept: int = 0
    window: Window | bool | None = None  # None before the first search, False if no window reproduces the known ids

    @cached_property
    def ids(self) -> Ids:
        """All ids, joined on demand: most texts are candidates that never need them."""
        return self.base[: self.kept] + self.tail

    def shared_with(self, other: EncodedText) -> int:
        """Length of the common prefix with another text's ids; cheap if this text grew from the other."""
        if self.base is other.ids:
            return self.kept + shared_length(other.ids[self.kept :], self.tail)
        return shared_length(other.ids, self.ids)

    def ids_from(self, start: int) -> Ids:
        """`ids[start:]`."""
        return self.tail[start - self.kept :] if start >= self.kept else self.ids[start:]


@dataclass
class IncrementalEncoder:
    """Encodes a growing text."""

    encode_whole: Callable[[str], Ids]
    encode_tail: Callable[[str], Ids]  # encodes the part of a text after a safe cut
    cuts: regex.Pattern[str] | None  # its matches start at safe cuts; None if there are none

    def grow(self, base: EncodedText, text: str) -> EncodedText:
        """Encode a text that starts with `base.text`; the ids are those of encoding it whole."""
        if base.window is None:
            base.window = self._find_window(base) or False
        if isinstance(base.window, Window):
            start, kept, guard = base.window
            tail = self.encode_tail(text[start:])
            if tail[: len(guard)] == guard:
                return EncodedText(text, tail, base.ids, kept, base.window if len(text) - start <= _REUSED else None)
        return EncodedText(text, self.encode_whole(text))

    def _find_window(self, encoded: EncodedText) -> Window | None:
        """A window that has the same ids encoded alone as inside the text."""
        if self.cuts is None:
            return None
        text, ids = encoded.text, encoded.ids
        for searched in _SEARCHED:
            starts = [match.start() for match in self.cuts.finditer(text, max(0, len(text) - searched))]
            for width in _WIDTHS:
                if len(starts) < width:
                    break
                start, guard_end = starts[-width], starts[1 - width]
                tail, guard = self.encode_tail(text[start:]), self.encode_tail(text[start:guard_end])
                ids_before = len(ids) - len(tail)
                if guard and ids[ids_before:] == tail and tail[: len(guard)] == guard:
                    return Window(start, ids_before, guard)
        return None
