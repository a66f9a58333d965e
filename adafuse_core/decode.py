"""The loop: play a round, commit it, let its safe text out, until a stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adafuse_core.budget import Budget, unanimous
from adafuse_core.chat.guide import Guide
from adafuse_core.config import GenerationParams
from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import Prefix, WindowFull
from adafuse_core.rounds import Usage
from adafuse_core.stopping import StopMatcher
from adafuse_core.strategies.base import Strategy


def decode(
    prefixes: Sequence[Prefix], strategy: Strategy, params: GenerationParams, guide: Guide | None = None
) -> Iterator[Event]:
    """Play rounds until a stop; yield text as soon as it is safe. The budget counts the first member's tokens.

    Args:
        prefixes: The members' views of the answer.
        strategy: How they decide.
        params: Budget, stop strings, temperature.
        guide: What the answer may be. What it forces is committed without asking the members.
    """
    chooser = Chooser(params.temperature, params.seed)
    stop = StopMatcher(params.stop)
    budget = Budget(prefixes, params.max_new_tokens, guide)
    rounds = 0
    while not stop.reason:
        forced, full = None if guide is None else guide.forced, False
        try:
            played = strategy.play(prefixes, chooser) if forced is None else unanimous(forced)
        except WindowFull:
            closing = budget.close(guide)
            if closing is None:
                if text := stop.cut():
                    yield TextDelta(text=text)
                break
            played, full = closing, True
        rounds += 1
        played, spent = budget.fit(played, guide)
        for prefix in prefixes:
            prefix.commit(played.span)
        guide = guide and guide.after(played.span.text)
        if text := stop.feed(played.span, out_of_budget=spent or full):
            yield TextDelta(text=text)
        yield RoundDone(round=played)
    yield Finished(reason=stop.reason or "length", stop=stop.hit, usage=_usage(prefixes, rounds))


def _usage(prefixes: Sequence[Prefix], rounds: int) -> Usage:
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in prefixes},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in prefixes},
        rounds=rounds,
    )
