"""What a token adds to the duration of a forward pass, measured while the model runs.

On a GPU, or on a CPU with matrix instructions for the model's dtype, a pass over twenty tokens takes little longer than
one over a single token, so guesses are nearly free. On other CPUs every token counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_MOST_TOKENS = 64  # in longer passes, attention takes a growing share
_REMEMBERED = 64  # last passes that count
_FEWEST = 4  # passes before the estimate is used
_SHARE = 0.25  # of a pass: duration that guesses may add to it
_MOST_GUESSES = 12  # more save no further passes
_GUESSES_BEFORE = 6  # allowed before anything is known


class PassCosts:
    """A linear fit of the seconds of the last passes against their tokens.

    Of several passes over equally many tokens, the shortest one counts: whatever else the machine does can only
    lengthen a pass.
    """

    def __init__(self) -> None:
        self._passes: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)  # tokens, seconds

    @contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Measure a pass. CPU time, so that other processes on the machine don't count."""
        started = time.thread_time()
        yield
        self.add(tokens, time.thread_time() - started)

    def add(self, tokens: int, seconds: float) -> None:
        """Count a pass over this many tokens."""
        if tokens <= _MOST_TOKENS:
            self._passes.append((tokens, seconds))

    def affordable_guesses(self) -> int:
        """How many tokens a pass may read in addition, if a guess that comes true saves a pass."""
        passes = list(self._passes)
        shortest: dict[int, float] = {}
        for tokens, seconds in passes:
            shortest[tokens] = min(seconds, shortest.get(tokens, seconds))
        count = len(passes) or 1
        mean = sum(tokens for tokens, _ in passes) / count
        spread = sum((tokens - mean) ** 2 for tokens, _ in passes)
        if len(passes) < _FEWEST or spread <= count / 2:  # nearly all passes had the same length
            return _GUESSES_BEFORE
        per_token = sum((tokens - mean) * shortest[tokens] for tokens, _ in passes) / spread
        one_token = sum(shortest[tokens] for tokens, _ in passes) / count - per_token * (mean - 1)
        if per_token <= 0:
            return _MOST_GUESSES
        return max(0, min(_MOST_GUESSES, int(_SHARE * one_token / per_token)))
