"""The decoding loop: propose a round, cut it to the token budget, commit it, until the answer ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from adafuse_core.budget import Budget, forced_round
from adafuse_core.chat.guide import Guide
from adafuse_core.chooser import Chooser
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.events import Event, Finished, RoundDone, TextDelta
from adafuse_core.members.base import WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import LibraryText, Round, Usage
from adafuse_core.strategies.base import Limits

logger = logging.getLogger(__name__)


def decode(
    prefixes: Prefixes,
    config: EnsembleConfig,
    params: GenerationParams,
    guide: Guide | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Decode an answer round by round. The token budget counts tokens of the first member.

    Args:
        prefixes: One prefix per member.
        config: Holds the strategy.
        params: Token budget, temperature and seed.
        guide: Grammar state at the beginning of the answer. Forced text is committed without running the members.
        stopped: Whether to end the answer before the next round, such as at a stop string.

    Yields:
        `TextDelta`s with the members' text, a `RoundDone` per round, and one `Finished`. Text that the library wrote is
        in `Round.library_text`, not in a `TextDelta`.
    """
    chooser = config.strategy.chooser(prefixes, params.temperature, params.seed)
    limits = Limits(max_new_tokens=params.max_new_tokens, stop=params.stop)
    proposals = config.strategy.rounds(prefixes, chooser, limits)
    budget = Budget(prefixes, params.max_new_tokens, guide)
    reason: str | None = None
    rounds, library_text = 0, list[LibraryText]()
    while reason is None and not stopped():
        # 1. Propose: text that the grammar forces, or a decision of the members. If a context window is full: the
        # shortest valid end.
        try:
            played, full = forced_round(guide.forced) if guide and guide.forced else next(proposals), False
        except WindowFull:
            ending = budget.ending(guide)
            if ending is None:
                reason = "length"
                break
            played, full = ending, True
        # 2. Cut the round to the token budget.
        played, spent = budget.fit(played, guide)
        if params.logprobs:
            played = with_logprobs(played, prefixes, chooser)
        # 3. Commit the same text to every member.
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
        _warn_of_library_text(library_text, params)
        reason = "length"
    yield Finished(reason=reason or "stop", stop=None, usage=usage(prefixes, rounds), library_text=tuple(library_text))


def with_logprobs(played: Round, prefixes: Prefixes, chooser: Chooser) -> Round:
    """The round with scores of its committed span."""
    if played.span_scores:
        return played
    ((*scores,),) = prefixes.score([played.span])
    if len(played.candidates) == 1 and played.cut is None:
        return chooser.scored(played, [scores])
    return replace(played, committed_scores=tuple(scores))


def _warn_of_library_text(written: Sequence[LibraryText], params: GenerationParams) -> None:
    parts = (f"{text.text!r} ({text.kind}{': ' if text.fields else ''}{', '.join(text.fields)})" for text in written)
    logger.warning(
        "the token budget (max_new_tokens=%s) or a context window was too small for the answer, so AdaFuse wrote in "
        "the members' place: %s. Hint: raise max_new_tokens",
        params.max_new_tokens,
        "; ".join(parts),
    )


def usage(prefixes: Prefixes, rounds: int) -> Usage:
    """Token counts of the answer so far."""
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in prefixes},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in prefixes},
        rounds=rounds,
        cached_tokens={prefix.name: prefix.cached_tokens for prefix in prefixes},
        read_tokens={prefix.name: prefixes.read_tokens(prefix.name) for prefix in prefixes},
    )
