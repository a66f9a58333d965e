"""The loop: propose, cut to the budget, commit, until the answer ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from adafuse_core.budget import Budget, unanimous
from adafuse_core.chat.guide import Guide
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.fusion import Chooser
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import LibraryText, Round, Usage

logger = logging.getLogger(__name__)


def decode(
    prefixes: Prefixes,
    config: EnsembleConfig,
    params: GenerationParams,
    guide: Guide | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Play rounds until the answer ends. The budget counts the first member's tokens.

    Args:
        prefixes: The members' views of the answer.
        config: How they decide: strategy, scoring rule and pool.
        params: Budget, temperature.
        guide: What the answer may be. What it forces is committed without asking the members.
        stopped: Asked after each round that the consumer took: whether the answer should end there, such as at a stop
            string.

    Yields:
        What members wrote as `TextDelta`s. What the library wrote in their place stands in its round alone.
    """
    chooser = Chooser(config.fusion, [prefix.weight for prefix in prefixes], params.temperature, params.seed)
    proposals = config.strategy.rounds(prefixes, chooser)
    budget = Budget(prefixes, params.max_new_tokens, guide)
    reason: str | None = None
    rounds, library_text = 0, list[LibraryText]()
    while reason is None and not stopped():
        # 1. Propose: what the grammar forces, what the members decide, or, without room for either, the way to an end.
        try:
            played, full = unanimous(guide.forced) if guide and guide.forced else next(proposals), False
        except WindowFull:
            ending = budget.ending(guide)
            if ending is None:
                reason = "length"
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
        reason = "stop" if played.span.ends else "length" if spent or full else None
        if played.library_text is not None:
            library_text.append(played.library_text)
        if played.members_text:
            yield TextDelta(text=played.members_text)
        yield RoundDone(round=played)
    if library_text:
        _warn(library_text, params)
        reason = "length"
    yield Finished(reason=reason or "stop", stop=None, usage=usage(prefixes, rounds), library_text=tuple(library_text))


def with_logprobs(played: Round, prefixes: Prefixes, chooser: Chooser) -> Round:
    """The round, its committed span scored if it was not."""
    if played.span_scores:
        return played
    ((*scores,),) = prefixes.score([played.span])
    return chooser.scored(played, [scores]) if played.cut is None else replace(played, cut_scores=tuple(scores))


def _warn(written: Sequence[LibraryText], params: GenerationParams) -> None:
    """Say what of an answer no member wrote."""
    told = "; ".join(
        f"{text.text!r} ({text.kind}{': ' if text.fields else ''}{', '.join(text.fields)})" for text in written
    )
    logger.warning(
        "the token budget (max_new_tokens=%s) or a context window was too small for the answer, so AdaFuse wrote in "
        "the members' place: %s. Hint: raise max_new_tokens",
        params.max_new_tokens,
        told,
    )


def usage(prefixes: Prefixes, rounds: int) -> Usage:
    """The tokens that an answer has taken so far."""
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in prefixes},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in prefixes},
        rounds=rounds,
    )
