"""What the answers of a server have told about the next tokens of contexts that begin alike."""

from __future__ import annotations

from collections.abc import Mapping

from adafuse_core.backends.base import TopTokens
from adafuse_core.text.ids import Ids, shared_length

_TAIL_TOKENS = 4  # last tokens of the context that may be encoded anew


class Step:
    """What is known of the next token after a context.

    Attributes:
        top: The likeliest tokens, if they were asked for.
        logprobs: Natural log-probabilities of all tokens that were asked for.
    """

    __slots__ = ("logprobs", "top")

    def __init__(self) -> None:
        self.top = TopTokens((), ())
        self.logprobs: dict[int, float] = {}

    def add_top(self, top: TopTokens) -> None:
        """Learn the likeliest tokens, if they are more than are known."""
        if len(top.ids) > len(self.top.ids):
            self.top = top
            self.add(dict(zip(top.ids, top.logprobs, strict=True)))

    def add(self, logprobs: Mapping[int, float]) -> None:
        """Learn log-probabilities. Known ones stay as they are: the rounding of passes differs."""
        self.logprobs = {**logprobs, **self.logprobs}


class KnownSteps:
    """The steps of one session, by context.

    Args:
        context: The first context.

    Attributes:
        tokens_read: Tokens of all contexts so far; beginnings that they share count once.
    """

    def __init__(self, context: Ids) -> None:
        self._base: Ids = context[:-_TAIL_TOKENS]  # all contexts begin with it
        self._steps: dict[Ids, Step] = {}  # by the tokens after it
        self.tokens_read = 0

    def get(self, context: Ids) -> Step | None:
        """What is known of the next token; None if nothing is."""
        length = len(self._base)
        return self._steps.get(context[length:]) if context[:length] == self._base else None

    def at(self, context: Ids) -> Step:
        """The step of a context, made if there is none."""
        shared = shared_length(context, self._base)
        if shared < len(self._base):
            self._begin_with(self._base[: max(0, shared - _TAIL_TOKENS)])
        after = context[len(self._base) :]
        if after not in self._steps:
            self.tokens_read += self._unread(after)
            self._steps[after] = Step()
        return self._steps[after]

    def commit(self, context: Ids) -> None:
        """Keep what continues a context, and what it continues by a few tokens."""
        base = context[:-_TAIL_TOKENS]
        self._begin_with(self._base[: shared_length(base, self._base)])
        new, rest = len(base) - len(self._base), context[len(self._base) :]
        kept = {after: step for after, step in self._steps.items() if len(after) >= new and _in_line(after, rest)}
        self._base, self._steps = base, {after[new:]: step for after, step in kept.items()}

    def _unread(self, after: Ids) -> int:
        """Tokens of a context beyond the longest part of it whose next token is known."""
        if not self._steps:
            return len(self._base) + len(after)
        known = (end for end in range(len(after), 0, -1) if after[:end] in self._steps)
        return len(after) - next(known, 0)

    def _begin_with(self, base: Ids) -> None:
        """Let contexts begin with a beginning of the base only."""
        between = self._base[len(base) :]
        if between:
            self._base, self._steps = base, {between + after: step for after, step in self._steps.items()}


def _in_line(first: Ids, second: Ids) -> bool:
    """Whether one of two contexts begins with the other."""
    length = min(len(first), len(second))
    return first[:length] == second[:length]
