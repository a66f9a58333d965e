"""How a cache that the model itself created can be extended: by which tokens, in which of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from adafuse_core.engine.memo import Node


@dataclass(frozen=True)
class CacheGrowth:
    """The tokens that extend a cache.

    Args:
        cache_rows: Number of rows of the cache before.
        rows: Cache row that each row of `nodes` continues; a cache row may be continued several times, or not at all.
        nodes: `[rows][tokens]`.
    """

    cache_rows: int
    rows: list[int]
    nodes: list[list[Node]]

    @property
    def keeps_rows(self) -> bool:
        """Whether every cache row is continued once, in its old place."""
        return self.rows == list(range(self.cache_rows))


@dataclass(frozen=True)
class CacheAbilities:
    """What the model's own cache supports, beyond one row that grows by one token per pass.

    Args:
        several_tokens: Reading several tokens of a row in one pass.
        several_rows: Several rows, which can be selected and repeated before a pass.
    """

    several_tokens: bool = False
    several_rows: bool = False

    def allow(self, growth: CacheGrowth) -> bool:
        """Whether a cache can grow like this."""
        tokens = {len(new) for new in growth.nodes}
        if len(tokens) > 1 or 0 in tokens:  # all rows of a pass have the same number of tokens
            return False
        one_row = growth.cache_rows == len(growth.rows) == 1
        return (tokens == {1} or self.several_tokens) and (one_row or self.several_rows)


@dataclass(frozen=True)
class LiveCache:
    """A cache that the model itself created, and the node at the end of each row; all rows are equally long."""

    cache: Any
    ends: list[Node]

    def growth_to(self, paths: Iterable[Sequence[Node]]) -> CacheGrowth | None:
        """The growth to the ends of these paths, which start at the trunk; None if a path continues no row."""
        row_of = {end: row for row, end in enumerate(self.ends)}
        found = []
        for path in paths:
            last = next((index for index in reversed(range(len(path))) if path[index] in row_of), None)
            if last is None:
                return None
            found.append((row_of[path[last]], list(path[last + 1 :])))
        found.sort(key=lambda pair: pair[0])  # so that rows keep their places if all of them continue
        return CacheGrowth(len(self.ends), [row for row, _ in found], [new for _, new in found])


def split_shared(paths: Sequence[list[Node]]) -> tuple[list[Node], CacheGrowth]:
    """The nodes that all paths share, and the growth of a one-row cache from there to the ends of the paths."""
    shared = [nodes[0] for nodes in takewhile(lambda nodes: len({*nodes}) == 1, zip(*paths, strict=False))]
    return shared, CacheGrowth(1, [0] * len(paths), [path[len(shared) :] for path in paths])
