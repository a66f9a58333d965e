"""The parser state of a grammar after some text, and what may follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from adafuse_core.chat.endings import allowed_bytes, find_ending
from adafuse_core.rounds import Span

_CLOSERS = "]},"
_OPENED_BY = {'"': '"', "]": "[", "}": "{"}
_AFTER_STRINGS = frozenset(b",:]}\n<")  # bytes that may follow the end of a JSON string
_FREE_TEXT = 128  # where more bytes than this are allowed, the grammar is in free text


class Guide:
    """An immutable parser state. `after` returns the state after more text.

    Args:
        matcher: State of an llguidance matcher whose tokens are bytes.
        literals: Literal texts of the grammar.
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
        """A short text that completes the answer; None if the search found none."""
        ending = find_ending(self._matcher, self._literals)
        return None if ending is None else ending.decode()

    @cached_property
    def closing(self) -> str:
        """The beginning of `short_ending` that closes open strings, lists and thoughts, if required values follow it.

        The members can then write these values. Empty if the ending starts with a value or contains no values.
        """
        ending = self.short_ending or ""
        length, whole = self._closers(ending)
        return "" if whole else ending[:length]

    def only_closes(self, text: str) -> bool:
        """Whether a text only closes open strings, lists and objects, without adding values."""
        return self._closers(text)[1]

    def _closers(self, text: str) -> tuple[int, bool]:
        """The length of the closing characters at the start of a text, and whether the text consists of them.

        Forced text counts as closing, but the length ends at the last character that is not forced.
        """
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
        """The closing text at the start of `text`: one character of JSON, or a literal after free text; else empty."""
        if _OPENED_BY.get(text[0]) == before[-1:]:
            return ""  # an empty value
        if text[0] == '"':
            after = self.after(text[0])
            return text[0] if after is not None and _AFTER_STRINGS.issuperset(allowed_bytes(after._matcher)) else ""
        literals = (literal.decode() for literal in self._literals)
        literal = max((each for each in literals if text.startswith(each)), key=len, default="")
        if literal and len(allowed_bytes(self._matcher)) > _FREE_TEXT:
            return literal
        return text[0] if text[0] in _CLOSERS else ""

    @cached_property
    def forced(self) -> Span | None:
        """The text with which every valid answer continues; None if there is a choice."""
        text = self._matcher.compute_ff_bytes().decode("utf-8", "ignore")  # the last character may be incomplete
        after = self.after(text) if text else self
        ends = after is not None and bool(after._matcher.is_stopped())
        return Span(text=text, ends=ends) if text or ends else None

    def after(self, text: str) -> Guide | None:
        """The state after more text; None if the grammar does not allow the text."""
        matcher = self._matcher.deep_copy()
        data = list(text.encode())
        return Guide(matcher, self._literals) if matcher.try_consume_tokens(data) == len(data) else None
