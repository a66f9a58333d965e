"""A guide knows how far an answer has come in its grammar, and what may follow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from adafuse_core.chat.endings import find_ending
from adafuse_core.rounds import Span


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
