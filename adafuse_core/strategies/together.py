"""How members work side by side: those that share a device take turns, devices work at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from adafuse_core.members.base import Prefix
from adafuse_core.rounds import Draft, DraftPlan, Span

Result = TypeVar("Result")


def draft_all(prefixes: Sequence[Prefix], plan: DraftPlan, *, verify: bool) -> tuple[Draft, ...]:
    """What each member proposes.

    Args:
        prefixes: The members' views of the answer.
        plan: How far and how wide to draft.
        verify: Whether a member reads, in the pass that starts its draft, what members before it on the same
            device proposed. That pass is its scoring of them, too.
    """

    def in_turn(group: Sequence[Prefix]) -> list[Draft]:
        drafts: list[Draft] = []
        for prefix in group:
            spans = dict.fromkeys(span for draft in drafts for span in draft.spans) if verify else ()
            drafts.append(prefix.draft(plan, tuple(spans)))
        return drafts

    return tuple(_by_place(in_turn, prefixes))


def score_all(prefixes: Sequence[Prefix], spans: Sequence[Span]) -> tuple[tuple[float, ...], ...]:
    """`[spans][members]`: mean NLL in nats per token of that member."""
    scores = _by_place(lambda group: [prefix.score(spans) for prefix in group], prefixes)
    return tuple(zip(*scores, strict=True))


def _by_place(work: Callable[[Sequence[Prefix]], Sequence[Result]], prefixes: Sequence[Prefix]) -> list[Result]:
    """Work on the members of each place in turn, on all places at once; results in the order of the members."""
    groups: dict[str, list[int]] = {}
    for index, prefix in enumerate(prefixes):
        groups.setdefault(prefix.place, []).append(index)
    members = [[prefixes[index] for index in group] for group in groups.values()]
    if len(members) == 1:
        return list(work(members[0]))
    with ThreadPoolExecutor(len(members)) as pool:
        done = list(pool.map(work, members))
    results = {
        index: result
        for group, part in zip(groups.values(), done, strict=True)
        for index, result in zip(group, part, strict=True)
    }
    return [results[index] for index in range(len(prefixes))]
