"""Encodes a growing text at a cost that does not depend on its length.

Only a window of the last words is encoded again, starting at a safe cut. The re-encoded window is trusted only if it
reproduces known ids: all of them before the text grows, those of its first word afterwards. Otherwise the whole text
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
    """The last words of a text.

    Attributes:
        start: Character offset of the window.
        ids_before: Number of ids before the window.
        guard: Ids of the window's first word.
    """

    start: int
    ids_before: int
    guard: Ids


@dataclass
class EncodedText:
    """The ids of a text: the first `kept` ids of the shorter text that it grew from, then `tail`.

    Attributes:
        text: The text.
        tail: Ids after the kept ones.
        base: All ids of the shorter text.
        kept: Number of ids shared with the shorter text.
        window: None before the first search, False if no window reproduces the known ids.
    """

    text: str
    tail: Ids
    base: Ids = ()
    kept: int = 0
    window: Window | bool | None = None

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


class IncrementalEncoder:
    """Encodes a growing text.

    Args:
        encode_whole: Encodes a whole text.
        encode_tail: Encodes the part of a text after a safe cut.
        cuts: Pattern whose matches start at safe cuts; None if there are none.
    """

    def __init__(
        self, encode_whole: Callable[[str], Ids], encode_tail: Callable[[str], Ids], cuts: regex.Pattern[str] | None
    ) -> None:
        self._encode_whole = encode_whole
        self._encode_tail = encode_tail
        self._cuts = cuts

    def grow(self, base: EncodedText, text: str) -> EncodedText:
        """Encode a text that starts with `base.text`; the ids are those of encoding it whole."""
        if base.window is None:
            base.window = self._find_window(base) or False
        if isinstance(base.window, Window):
            start, kept, guard = base.window
            tail = self._encode_tail(text[start:])
            if tail[: len(guard)] == guard:
                return EncodedText(text, tail, base.ids, kept, base.window if len(text) - start <= _REUSED else None)
        return EncodedText(text, self._encode_whole(text))

    def _find_window(self, encoded: EncodedText) -> Window | None:
        """A window that has the same ids encoded alone as inside the text."""
        if self._cuts is None:
            return None
        text, ids = encoded.text, encoded.ids
        for searched in _SEARCHED:
            starts = [match.start() for match in self._cuts.finditer(text, max(0, len(text) - searched))]
            for width in _WIDTHS:
                if len(starts) < width:
                    break
                start, guard_end = starts[-width], starts[1 - width]
                tail, guard = self._encode_tail(text[start:]), self._encode_tail(text[start:guard_end])
                ids_before = len(ids) - len(tail)
                if guard and ids[ids_before:] == tail and tail[: len(guard)] == guard:
                    return Window(start, ids_before, guard)
        return None
