"""The loop: play a round, commit it, let its safe text out, until a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from adafuse_core.config import GenerationParams
from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import Prefix, WindowFull
from adafuse_core.rounds import Round, Usage
from adafuse_core.stopping import StopMatcher
from adafuse_core.strategies.base import Strategy


def decode(prefixes: Sequence[Prefix], strategy: Strategy, params: GenerationParams) -> Iterator[Event]:
    """Play rounds until a stop; yield text as soon as it is safe. The budget counts the first member's tokens."""
    chooser = Chooser(params.temperature, params.seed)
    stop = StopMatcher(params.stop)
    reference, rounds = prefixes[0], 0
    while not stop.reason:
        try:
            played = strategy.play(prefixes, chooser)
        except WindowFull:
            if text := stop.cut():
                yield TextDelta(text=text)
            break
        rounds += 1
        played, spent = _within_budget(played, reference, params.max_new_tokens)
        for prefix in prefixes:
            prefix.commit(played.span)
        if text := stop.feed(played.span, out_of_budget=spent):
            yield TextDelta(text=text)
        yield RoundDone(round=played)
    yield Finished(reason=stop.reason or "length", stop=stop.hit, usage=_usage(prefixes, rounds))


def _within_budget(played: Round, reference: Prefix, budget: int | None) -> tuple[Round, bool]:
    """The round, its span cut to the tokens that are left, and whether none are left after it."""
    if budget is None:
        return played, False
    left, cost = budget - reference.completion_tokens, reference.cost(played.span)
    if cost > left:
        played = replace(played, cut=reference.clip(played.span, left))
    return played, cost >= left


def _usage(prefixes: Sequence[Prefix], rounds: int) -> Usage:
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in prefixes},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in prefixes},
        rounds=rounds,
    )
