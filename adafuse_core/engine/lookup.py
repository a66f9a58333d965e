"""Guesses the next tokens by looking up the last n-gram in the context itself.

Answers copy: from the passages of a prompt, from code, from themselves. A guess costs a few tokens in a pass that
runs anyway, and a wrong guess is never looked up. Guesses get longer after right ones and shorter after wrong ones.
"""

from __future__ import annotations

from adafuse_core.text.ids import Ids

_SIZES = (4, 3, 2)  # of the n-grams looked up, longest first
_LONGEST = 8  # tokens of a guess
_FIRST = 3
_PROBE_EVERY = 4  # while guesses fail, one in four is still made, of one token


class Lookup:
    """N-grams of a growing context, and the guesses that were made from them."""

    def __init__(self) -> None:
        self._ids: Ids = ()
        self._ends: dict[Ids, int] = {}  # where each n-gram ended last, before the last token
        self._length = _FIRST
        self._withheld = 0
        self._open: list[tuple[Ids, Ids]] = []  # guesses that no commit has judged: context beyond the answer, guess

    def guess(self, committed: Ids, beyond: Ids) -> Ids:
        """Tokens that may follow the committed context and some tokens beyond it; empty if the n-gram is new."""
        self._learn(committed)
        length = self._length or self._probe()
        last = (committed[-_SIZES[0] :] + beyond)[-_SIZES[0] :]
        ends = (self._ends.get(last[-size:]) for size in _SIZES if size <= len(last))
        end = next((end for end in ends if end is not None), None)
        if end is None or not length:
            return ()
        guess = self._ids[end : end + length]
        self._open.append((beyond, guess))
        return guess

    def _learn(self, committed: Ids) -> None:
        known = len(self._ids)
        if known == len(committed) and committed == self._ids:
            return
        if committed[:known] == self._ids:
            self._judge(committed[known:])
        else:  # the answer replaced a token on the seam
            self._ends.clear()
            known = 0
        for end in range(max(1, known), len(committed)):
            for size in _SIZES:
                if size <= end:
                    self._ends[committed[end - size : end]] = end
        self._ids = committed
        self._open.clear()

    def _judge(self, written: Ids) -> None:
        """Make guesses longer after one that was right to its end, shorter after one that was wrong at once."""
        for beyond, guess in self._open:
            came = written[len(beyond) : len(beyond) + len(guess)]
            if written[: len(beyond)] == beyond and came:
                if came == guess[: len(came)]:
                    self._length = min(_LONGEST, max(_FIRST, 2 * self._length))
                elif came[0] != guess[0]:
                    self._length = max(0, self._length - 1)

    def _probe(self) -> int:
        self._withheld += 1
        return int(self._withheld % _PROBE_EVERY == 0)
