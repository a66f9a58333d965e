"""Whole answers of all members, drafted greedily. For strategies that choose among whole answers."""

from __future__ import annotations

from collections.abc import Iterator

from adafuse_core.chooser import pooled
from adafuse_core.members.base import Prefix, WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Candidate, Draft, DraftPlan, Round, Span
from adafuse_core.strategies.base import Limits

_WORDS = 16  # per step; fewer near the end of the token budget, so that a step does not go far beyond it
_TOKENS_PER_WORD = 4  # a cautious estimate
_UNBOUNDED = 1 << 30  # tokens


def whole_answers(prefixes: Prefixes, limits: Limits) -> tuple[tuple[Draft, ...], tuple[Candidate, ...]]:
    """The whole answer of each member, and the distinct ones that fit into all context windows.

    An answer that has no end and no stop string was cut at the token budget, counted in the member's own tokens, or
    where the member's context window is full.

    Raises:
        WindowFull: A context window has no room for an answer.
    """
    drafts = tuple(prefixes.each(_Writer(prefixes, limits).whole_answer))
    candidates = tuple(candidate for candidate in pooled(drafts) if prefixes.fit(candidate.span))
    if not candidates:
        raise WindowFull
    return drafts, candidates


def continued(prefixes: Prefixes, limits: Limits, name: str) -> Iterator[Round]:
    """Rounds in which one member continues an answer: what the token budget or a grammar left of its own draft."""
    author = next(prefix for prefix in prefixes if prefix.name == name)
    while True:
        draft = _Writer(prefixes, limits).whole_answer(author)
        candidates = pooled([draft])
        if not prefixes.fit(candidates[0].span):
            raise WindowFull
        yield Round(drafts=(draft,), candidates=candidates)


class _Writer:
    """Drafts the rest of an answer within its limits.

    A draft takes steps of some words, each beyond the last one. A stop string ends a step; it does not end the answer
    in a thought, nor if the answer may call tools, since it may be in a call.
    """

    def __init__(self, prefixes: Prefixes, limits: Limits) -> None:
        self._reading = prefixes.reading
        self._stop = limits.stop
        used = prefixes[0].completion_tokens
        self._left = _UNBOUNDED if limits.max_new_tokens is None else max(1, limits.max_new_tokens - used)

    def whole_answer(self, prefix: Prefix) -> Draft:
        """The rest of one member's greedy answer, in at most as many of its tokens as are left of the budget."""
        span, margins = Span(text=""), list[float]()
        while not span.ends and not self._reading.stops(prefix.text + span.text, self._stop):
            room = self._left - prefix.cost(span)
            if room <= 0:
                break
            try:
                draft = prefix.draft(self._plan(room), after=span)
            except WindowFull:
                if not span.text:
                    raise
                break
            margins += draft.margins
            span = draft.spans[0]
        if prefix.cost(span) > self._left:
            span = prefix.truncate(span, self._left)
        return Draft(member=prefix.name, spans=(span,), margins=tuple(margins))

    def _plan(self, room: int) -> DraftPlan:
        words = max(1, min(_WORDS, room // _TOKENS_PER_WORD))
        return DraftPlan(tau=0.0, max_words=words, branches=1, stop=self._stop)
