"""The loop: propose, cut to the budget, commit, show what is safe, until a stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adafuse_core.budget import Budget, unanimous
from adafuse_core.chat.guide import Guide
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Round, Usage
from adafuse_core.stopping import StopMatcher


def decode(
    prefixes: Prefixes, config: EnsembleConfig, params: GenerationParams, guide: Guide | None = None
) -> Iterator[Event]:
    """Play rounds until a stop; yield text as soon as it is safe. The budget counts the first member's tokens.

    Args:
        prefixes: The members' views of the answer.
        config: How they decide: strategy, scoring rule and pool.
        params: Budget, stop strings, temperature.
        guide: What the answer may be. What it forces is committed without asking the members.
    """
    chooser = Chooser(config.fusion, [prefix.weight for prefix in prefixes], params.temperature, params.seed)
    proposals = config.strategy.rounds(prefixes, chooser)
    budget = Budget(prefixes, params.max_new_tokens, guide)
    stop = StopMatcher(params.stop)
    rounds = 0
    while not stop.reason:
        # 1. Propose: what the grammar forces, what the members decide, or, without room for either, the way to an end.
        try:
            played, full = unanimous(guide.forced) if guide and guide.forced else next(proposals), False
        except WindowFull:
            ending = budget.ending(guide)
            if ending is None:
                break
            played, full = ending, True
        # 2. Cut: the token budget may end inside the round.
        played, spent = budget.fit(played, guide)
        if params.logprobs:
            played = with_logprobs(played, prefixes, chooser)
        # 3. Commit: every member goes on from the same text.
        prefixes.commit(played.span)
        guide = guide and guide.after(played.span.text)
        rounds += 1
        # 4. Show: the text that no stop string can begin in, then the round.
        if text := stop.feed(played.span, out_of_budget=spent or full):
            yield TextDelta(text=text)
        yield RoundDone(round=played)
    if not stop.reason and (text := stop.cut()):
        yield TextDelta(text=text)
    yield Finished(reason=stop.reason or "length", stop=stop.hit, usage=_usage(prefixes, rounds))


def with_logprobs(played: Round, prefixes: Prefixes, chooser: Chooser) -> Round:
    """The round, its committed span scored if it was not."""
    if played.span_scores:
        return played
    ((*scores,),) = prefixes.score([played.span])
    return chooser.scored(played, [scores]) if played.cut is None else replace(played, cut_scores=tuple(scores))


def _usage(prefixes: Prefixes, rounds: int) -> Usage:
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in prefixes},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in prefixes},
        rounds=rounds,
    )
