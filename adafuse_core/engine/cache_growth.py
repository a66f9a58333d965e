"""How a cache that a model made itself can grow: by which tokens, in which of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from adafuse_core.engine.memo import Node


@dataclass(frozen=True)
class CacheGrowth:
    """The tokens that a cache reads next.

    Args:
        cache_rows: Rows of the cache before.
        rows: Row of the cache that each of `nodes` continues; one row may be continued several times, or not at all.
        nodes: `[rows][tokens]`.
    """

    cache_rows: int
    rows: list[int]
    nodes: list[list[Node]]

    @property
    def keeps_rows(self) -> bool:
        """Whether every row of the cache continues once, in its old place."""
        return self.rows == list(range(self.cache_rows))


@dataclass(frozen=True)
class CacheUse:
    """What a model's own cache can do beside reading one token after one row.

    Args:
        several_tokens: Read several tokens of a row in one pass.
        several_rows: Read rows side by side, of which some are chosen and repeated before a pass.
    """

    several_tokens: bool = False
    several_rows: bool = False

    def allows(self, growth: CacheGrowth) -> bool:
        """Whether a cache can grow like this."""
        tokens = {len(new) for new in growth.nodes}
        if len(tokens) > 1 or 0 in tokens:  # a pass reads as many tokens of each row
            return False
        one_row = growth.cache_rows == len(growth.rows) == 1
        return (tokens == {1} or self.several_tokens) and (one_row or self.several_rows)


@dataclass(frozen=True)
class LiveCache:
    """A cache of the model's own, and the nodes at which its rows end; all are equally deep."""

    cache: Any
    ends: list[Node]

    def growth_to(self, paths: Iterable[Sequence[Node]]) -> CacheGrowth | None:
        """How the cache gets to the ends of paths from the trunk; None if one of them does not lead through it."""
        row_of = {end: row for row, end in enumerate(self.ends)}
        found = []
        for path in paths:
            last = next((index for index in reversed(range(len(path))) if path[index] in row_of), None)
            if last is None:
                return None
            found.append((row_of[path[last]], list(path[last + 1 :])))
        found.sort(key=lambda pair: pair[0])  # rows that all continue keep their places
        return CacheGrowth(len(self.ends), [row for row, _ in found], [new for _, new in found])


def branching(paths: Sequence[list[Node]]) -> tuple[list[Node], CacheGrowth]:
    """What paths have in common, and how a cache of that one row grows to their ends."""
    shared = [nodes[0] for nodes in takewhile(lambda nodes: len({*nodes}) == 1, zip(*paths, strict=False))]
    return shared, CacheGrowth(1, [0] * len(paths), [path[len(shared) :] for path in paths])
