"""The decoding loop: propose a round, cut it to the token budget, commit it, until the answer ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from adafuse_core.budget import Budget, forced_round
from adafuse_core.chat.guide import Guide
from adafuse_core.chooser import Chooser
from adafuse_core.config import EnsembleConfig, GenerationParams
from adafuse_core.errors import MemberError
from adafuse_core.events import Event, Finished, MemberDropped, RoundDone, TextDelta
from adafuse_core.member_failures import commit, drop
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
    dropped: Sequence[MemberDropped] = (),
    call_start: str | None = None,
) -> Iterator[Event]:
    """Decode an answer round by round. The token budget counts tokens of the first member.

    Args:
        prefixes: One prefix per member. Members that fail are left out, if the config says so.
        config: Holds the strategy.
        params: Token budget, temperature and seed.
        guide: Grammar state at the beginning of the answer. Forced text is committed without running the members.
        stopped: Whether to end the answer before the next round, such as at a stop string.
        dropped: Members that could not be opened.
        call_start: Text that starts tool calls, if the budget may end the answer inside a call.

    Yields:
        `TextDelta`s with the members' text, a `RoundDone` per round, a `MemberDropped` per member that was left out,
        and one `Finished`. Text that the library wrote is in `Round.library_text`, not in a `TextDelta`.
    """
    yield from dropped
    budget = Budget(prefixes, params.max_new_tokens, guide, call_start)
    play: _Play | None = None  # None before the first round, and after a member was left out
    reason: str | None = None
    rounds, library_text, out = 0, list[LibraryText](), list(dropped)
    while reason is None and not stopped():
        # 1. Propose, and cut the round to the token budget.
        try:
            play = play or _Play(prefixes, config, params)
            proposed = play.round(budget, guide)
        except MemberError as error:
            play = None
            out.append(drop(error, prefixes, config))
            yield out[-1]
            continue
        if proposed is None:
            reason = "length"
            break
        played, is_last = proposed
        # 2. Commit the same text to every member.
        for event in commit(prefixes, played.span, config):
            play = None
            out.append(event)
            yield event
        guide = guide and guide.after(played.span.text)
        rounds += 1
        reason = "stop" if played.span.ends else "length" if is_last else None
        if played.library_text is not None:
            library_text.append(played.library_text)
        if played.members_text:
            yield TextDelta(text=played.members_text)
        yield RoundDone(round=played)
    if library_text:
        _warn_of_library_text(library_text, params)
        reason = "length"
    yield Finished(
        reason=reason or "stop",
        stop=None,
        usage=usage(prefixes, rounds),
        library_text=tuple(library_text),
        dropped_members=tuple(out),
    )


class _Play:
    """The rounds that the strategy plays with some members, from the committed text on."""

    def __init__(self, prefixes: Prefixes, config: EnsembleConfig, params: GenerationParams) -> None:
        self._prefixes = prefixes
        self._params = params
        self._chooser = config.strategy.chooser(prefixes, params.temperature, params.seed)
        limits = Limits(max_new_tokens=params.max_new_tokens, stop=params.stop)
        self._proposals = config.strategy.rounds(prefixes, self._chooser, limits)

    def round(self, budget: Budget, guide: Guide | None) -> tuple[Round, bool] | None:
        """The next round within the budget, and whether the answer has to end after it.

        It is text that the grammar forces, or a decision of the members, or if a context window is full, the shortest
        valid end. None if a window is full, and the answer may end where it is.
        """
        try:
            played, full = forced_round(guide.forced) if guide and guide.forced else next(self._proposals), False
        except WindowFull:
            ending = budget.ending(guide)
            if ending is None:
                return None
            played, full = ending, True
        played, spent = budget.fit(played, guide)
        if self._params.logprobs:
            played = with_logprobs(played, self._prefixes, self._chooser)
        return played, spent or full


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
    """Token counts of the answer so far; those of members that were left out come last."""
    everyone = prefixes.with_dropped
    return Usage(
        prompt_tokens={prefix.name: prefix.prompt_tokens for prefix in everyone},
        completion_tokens={prefix.name: prefix.completion_tokens for prefix in everyone},
        rounds=rounds,
        cached_tokens={prefix.name: prefix.cached_tokens for prefix in everyone},
        read_tokens={prefix.name: prefixes.read_tokens(prefix.name) for prefix in everyone},
    )
