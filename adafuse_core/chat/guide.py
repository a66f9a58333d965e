"""A guide knows how far an answer has come in its grammar, and what may follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from adafuse_core.chat.endings import find_ending
from adafuse_core.rounds import Span

_CLOSERS = "]},"
_OPENED_BY = {'"': '"', "]": "[", "}": "{"}
_AFTER_STRINGS = frozenset(b",:]}\n<")  # bytes that may follow the end of a JSON string
_FREE = 128  # where more bytes than these may follow, any text may stand


class Guide:
    """A place in a grammar. It never changes: more text leads to another guide.

    Args:
        matcher: The grammar engine's state, on bytes as tokens.
        literals: Texts that the grammar names, as bytes.
    """

    def __init__(self, matcher: Any, literals: Sequence[bytes] = ()) -> None:
        self._matcher = matcher
        self._literals = literals

    @cached_property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @cached_property
    def short_ending(self) -> str | None:
        """A short text after which the answer may end; None if none was found."""
        ending = find_ending(self._matcher, self._literals)
        return None if ending is None else ending.decode()

    @cached_property
    def closing(self) -> str:
        """The beginning of `short_ending` that ends strings, lists and thoughts, if values have to follow it.

        After it, the members may write these values. Empty where the ending begins with a value, or holds none.
        """
        ending = self.short_ending or ""
        length, whole = self._closers(ending)
        return "" if whole else ending[:length]

    def only_closes(self, text: str) -> bool:
        """Whether a text that goes on here ends what was begun and holds no values of its own."""
        return self._closers(text)[1]

    def _closers(self, text: str) -> tuple[int, bool]:
        """The length of a text's last chosen character before a value is begun, and whether no value is."""
        guide, place, length = self, 0, 0
        while place < len(text):
            forced = guide.forced.text if guide.forced else ""
            step = forced or guide._closer(text[place:], before=text[:place])
            if not step:
                return length, False
            place += len(step)
            length = length if forced else place
            further = guide.after(step)
            assert further is not None, (text, step)
            guide = further
        return length, True

    def _closer(self, text: str, before: str) -> str:
        """The beginning of a text that ends what was begun: one character of JSON, or a literal after free text."""
        if _OPENED_BY.get(text[0]) == before[-1:]:
            return ""  # an empty value
        if text[0] == '"':
            after = self.after(text[0])
            return text[0] if after is not None and after._allowed() <= _AFTER_STRINGS else ""
        literal = max((each for each in self._texts if text.startswith(each)), key=len, default="")
        if literal and len(self._allowed()) > _FREE:
            return literal
        return text[0] if text[0] in _CLOSERS else ""

    def _allowed(self) -> set[int]:
        """The bytes that may follow."""
        bits = int.from_bytes(self._matcher.compute_bitmask(), "little")
        return {byte for byte in range(256) if bits >> byte & 1}

    @property
    def _texts(self) -> list[str]:
        return [literal.decode() for literal in self._literals]

    @cached_property
    def forced(self) -> Span | None:
        """The text with which every answer goes on here; None if there is a choice."""
        text = self._matcher.compute_ff_bytes().decode("utf-8", "ignore")  # a last character may have its first bytes
        after = self.after(text) if text else self
        ends = after is not None and bool(after._matcher.is_stopped())
        return Span(text=text, ends=ends) if text or ends else None

    def after(self, text: str) -> Guide | None:
        """The guide after more text; None if the grammar does not allow it."""
        matcher = self._matcher.deep_copy()
        data = list(text.encode())
        return Guide(matcher, self._literals) if matcher.try_consume_tokens(data) == len(data) else None
