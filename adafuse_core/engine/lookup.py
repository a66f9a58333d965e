"""Guesses what comes next by looking up the last tokens in what was read and written before.

Answers copy: from the passages of a prompt, from code, from themselves. A guess costs a few tokens in a pass that
runs anyway, and a wrong one is never looked at.
"""

from __future__ import annotations

from adafuse_core.text.tokens import Ids

_SIZES = (4, 3, 2)  # of the n-grams looked up, longest first


class Lookup:
    """N-grams of a growing context.

    Args:
        length: Most tokens of a guess.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._ids: Ids = ()
        self._ends: dict[Ids, int] = {}  # where each n-gram ended last, before the last token

    def guess(self, committed: Ids, beyond: Ids) -> Ids:
        """What may follow the committed context and some tokens beyond it; empty if nothing is known."""
        self._learn(committed)
        last = (committed[-_SIZES[0] :] + beyond)[-_SIZES[0] :]
        for size in _SIZES:
            end = self._ends.get(last[-size:]) if size <= len(last) else None
            if end is not None:
                return self._ids[end : end + self._length]
        return ()

    def _learn(self, committed: Ids) -> None:
        known = len(self._ids)
        if committed[:known] != self._ids:  # the last token may be written anew
            self._ends.clear()
            known = 0
        for end in range(max(1, known), len(committed)):
            for size in _SIZES:
                if size <= end:
                    self._ends[committed[end - size : end]] = end
        self._ids = committed
