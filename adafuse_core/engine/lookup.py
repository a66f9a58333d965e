"""Guesses the next tokens by looking up the last n-gram in the context itself (prompt lookup decoding).

Answers copy: from passages of the prompt, from code, from themselves. A guess adds a few tokens to a pass that runs
anyway; no request reads a wrong guess. Guesses get longer after correct ones and shorter after wrong ones.
"""

from __future__ import annotations

from adafuse_core.text.ids import Ids

_SIZES = (4, 3, 2)  # of the n-grams, longest first
_MAX_LENGTH = 8  # tokens of a guess
_FIRST_LENGTH = 3
_PROBE_EVERY = 4  # while guesses fail, every fourth one is made, of one token


class Lookup:
    """The n-grams of a growing context, and the guesses made from them."""

    def __init__(self) -> None:
        self._ids: Ids = ()
        self._ends: dict[Ids, int] = {}  # where each n-gram ended last, before the last token
        self._length = _FIRST_LENGTH
        self._withheld = 0
        self._pending: list[tuple[Ids, Ids]] = []  # guesses since the last commit: uncommitted tokens before it, guess

    def guess(self, committed: Ids, uncommitted: Ids) -> Ids:
        """The tokens that may follow the committed and some uncommitted tokens; empty if the n-gram is new."""
        self._index(committed)
        length = self._length
        if not length:
            self._withheld += 1
            length = int(self._withheld % _PROBE_EVERY == 0)
        last = (committed[-_SIZES[0] :] + uncommitted)[-_SIZES[0] :]
        ends = (self._ends.get(last[-size:]) for size in _SIZES if size <= len(last))
        end = next((end for end in ends if end is not None), None)
        if end is None or not length:
            return ()
        guess = self._ids[end : end + length]
        self._pending.append((uncommitted, guess))
        return guess

    def _index(self, committed: Ids) -> None:
        known = len(self._ids)
        if known == len(committed) and committed == self._ids:
            return
        if committed[:known] == self._ids:
            self._adapt_length(committed[known:])
        else:  # the answer has retokenized the end of the context
            self._ends.clear()
            known = 0
        for end in range(max(1, known), len(committed)):
            for size in _SIZES:
                if size <= end:
                    self._ends[committed[end - size : end]] = end
        self._ids = committed
        self._pending.clear()

    def _adapt_length(self, written: Ids) -> None:
        """Make guesses longer after a correct one, shorter after one whose first token was wrong."""
        for uncommitted, guess in self._pending:
            actual = written[len(uncommitted) : len(uncommitted) + len(guess)]
            if written[: len(uncommitted)] == uncommitted and actual:
                if actual == guess[: len(actual)]:
                    self._length = min(_MAX_LENGTH, max(_FIRST_LENGTH, 2 * self._length))
                elif actual[0] != guess[0]:
                    self._length = max(0, self._length - 1)
