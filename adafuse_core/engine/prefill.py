"""KV memory for any causal model: contexts are read whole, and what is written next goes on with the model's own cache.

Such a cache only grows. So a draft is read token by token, and the context once more where an answer goes on elsewhere:
with a candidate of another member, say. Whatever is no next step (candidates to score, guesses) is a fresh pass
over padded rows, which leaves the cache alone. What a model's own cache can do is found out by `selftest.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakSet

import torch

from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_plan import paths_to_read
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.text.ids import Ids

_MOST_TOKENS = 8192  # of one pass, padding included
_CACHE_NAMES = ("past_key_values", "cache_params", "state")  # as models take them and hand them out


@dataclass(frozen=True)
class CacheUse:
    """What a model's own cache can do beside going on with one token of one row.

    Args:
        several_tokens: Go on with several tokens of a row in one pass.
        several_rows: Go on with rows side by side, of which some are chosen and repeated before a pass.
    """

    several_tokens: bool = False
    several_rows: bool = False


@dataclass(frozen=True)
class Live:
    """A cache of the model's own, and the nodes at which its rows end; all are equally deep."""

    cache: Any
    ends: list[Node]


@dataclass(frozen=True)
class Growth:
    """What a live cache reads next.

    Args:
        rows: Rows of the cache, one for each of `nodes`.
        nodes: `[rows][tokens]`.
    """

    rows: list[int]
    nodes: list[list[Node]]


class PrefillStore:
    """Goes on with one cache for each sequence where it can, and reads other contexts as rows of one batch.

    Args:
        model: Any causal model.
        use: What its own cache can do; None to use none.

    Attributes:
        max_kv_tokens: Most tokens to hold, over all sequences; None for no bound. A sequence that finds no room is
            read anew at every step.
    """

    kind = "prefill"

    def __init__(self, model: Model, use: CacheUse | None = None) -> None:
        self.max_kv_tokens: int | None = None
        self._model = model
        self._use = use
        self._holders: WeakSet[Memo] = WeakSet()  # sequences that may have a live cache
        taken = inspect.signature(model.module.forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in taken), _CACHE_NAMES[0])

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """At most two passes for each ask with a live cache, and one over as many other contexts as it may hold."""
        others, wanted = [], set[Node]()
        for request in requests:
            ends = set(request.ends())
            paths = paths_to_read(ends, _path)
            if paths and not self._step(request.memo, ends, paths):
                others += [(request.memo.trunk, path) for path in paths]
                wanted |= ends
        if others:
            self._read_anew(others, wanted)

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one; a cache that led elsewhere is dropped."""
        dropped = set(memo.commit(context))
        live: Live | None = memo.kv
        if live is not None and dropped.issuperset(live.ends):
            memo.kv = None

    def tokens_held(self, memo: Memo) -> int:
        """Tokens of all rows of the live cache."""
        live: Live | None = memo.kv
        return 0 if live is None else len(live.ends) * live.ends[0].depth

    def tokens_needed(self, request: ReadRequest) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request: at most one row for each context."""
        rows = paths_to_read(request.ends(), _path)
        return max(self.tokens_held(request.memo), sum(path[-1].depth for path in rows))

    def _step(self, memo: Memo, wanted: set[Node], paths: list[list[Node]]) -> bool:
        """Read paths with a live cache, or a new one; False if that can't be, or if no steps are likely to follow."""
        if self._use is None:
            return False
        growth = self._growth(memo, paths)
        if growth is None:
            if not all(_is_next(path[-1], memo) for path in paths):
                return False
            if len(paths) == 1:
                if fits := self._fits(memo, 1, paths[0]):
                    self._begin(memo, wanted, paths[0])
                return fits
            shared = [nodes[0] for nodes in takewhile(lambda nodes: len({*nodes}) == 1, zip(*paths, strict=False))]
            growth = Growth([0] * len(paths), [path[len(shared) :] for path in paths])
            if not shared or not self._can(memo, growth, 1) or not self._begin(memo, wanted, shared):
                return False
        self._grow(memo, wanted, growth)
        return True

    def _growth(self, memo: Memo, paths: Iterable[list[Node]]) -> Growth | None:
        """How the live cache gets to the ends of paths; None if it does not."""
        live: Live | None = memo.kv
        if live is None:
            return None
        row_of = {end: row for row, end in enumerate(live.ends)}
        found = []
        for path in paths:
            new = list(takewhile(lambda node: node not in row_of, reversed(path)))[::-1]
            if len(new) == len(path):
                return None
            found.append((row_of[path[-len(new) - 1]], new))
        found.sort(key=lambda pair: pair[0])  # rows that all go on stay where they are
        growth = Growth([row for row, _ in found], [new for _, new in found])
        return growth if self._can(memo, growth, len(live.ends)) else None

    def _can(self, memo: Memo, growth: Growth, rows: int) -> bool:
        """Whether a cache of so many rows is good for this, and there is room."""
        assert self._use is not None
        lengths = {len(new) for new in growth.nodes}
        return (
            (lengths == {1} or (self._use.several_tokens and len(lengths) == 1 and lengths != {0}))
            and (self._use.several_rows or growth.rows == [0] == list(range(rows)))
            and self._fits(memo, len(growth.rows), growth.nodes[0])
        )

    def _fits(self, memo: Memo, rows: int, path: list[Node]) -> bool:
        """Whether there is room for rows that end like this; if not, the sequence makes room for the others."""
        if self.max_kv_tokens is None:
            return True
        others = sum(self.tokens_held(other) for other in self._holders if other is not memo)
        if others + rows * path[-1].depth <= self.max_kv_tokens:
            return True
        memo.kv = None
        return False

    def _begin(self, memo: Memo, wanted: set[Node], path: list[Node]) -> bool:
        """Read a context with a new cache; whether there is one then."""
        memo.kv = None
        length = _length(memo.trunk, path)
        places = list(_places(0, path, len(memo.trunk), wanted))
        first = min((index for _, index, _ in places), default=length - 1)
        logits, cache = self._model.go_on([_tokens(memo.trunk, path)], None, self._cache_name, last=length - first)
        _fill(places, logits, first)
        return self._hold(memo, cache, path[-1:])

    def _grow(self, memo: Memo, wanted: set[Node], growth: Growth) -> None:
        """Read on with the live cache, which is gone if that fails."""
        live: Live = memo.kv
        memo.kv = None
        if growth.rows != list(range(len(live.ends))):
            with torch.inference_mode():
                live.cache.reorder_cache(torch.tensor(growth.rows, device=self._model.device))
        rows = [_tokens((), new) for new in growth.nodes]
        logits, cache = self._model.go_on(rows, live.cache, self._cache_name, last=len(rows[0]))
        _fill([place for row, new in enumerate(growth.nodes) for place in _places(row, new, 0, wanted)], logits, 0)
        self._hold(memo, cache, [new[-1] for new in growth.nodes])

    def _hold(self, memo: Memo, cache: Any, ends: list[Node]) -> bool:
        """Keep what a model handed out, if that was a cache."""
        if cache is not None:
            memo.kv = Live(cache, ends)
            self._holders.add(memo)
        return cache is not None

    def _read_anew(self, rows: list[tuple[Ids, list[Node]]], wanted: set[Node]) -> None:
        """One pass without a cache over as many of the contexts as it may hold, each a trunk and the path below it."""
        rows.sort(key=lambda row: _length(*row), reverse=True)
        longest = _length(*rows[0])
        rows = rows[: max(1, _MOST_TOKENS // longest)]
        # Shorter rows are filled up on the right: what comes later can't change what came before.
        padded = [_tokens(trunk, path) + [0] * (longest - _length(trunk, path)) for trunk, path in rows]
        places = [place for row, (trunk, path) in enumerate(rows) for place in _places(row, path, len(trunk), wanted)]
        first = min(index for _, index, _ in places)
        logits = self._model.forward(padded, last=longest - first)  # [rows, longest - first, vocab]
        _fill(places, logits, first)


def _path(end: Node) -> list[Node]:
    """The nodes from the trunk down to a node."""
    return [node for node in end.path() if node.parent is not None][::-1]


def _tokens(trunk: Ids, path: Iterable[Node]) -> list[int]:
    return [*trunk, *(node.token for node in path)]


def _length(trunk: Ids, path: Sequence[Node]) -> int:
    return len(trunk) + len(path)


def _is_next(node: Node, memo: Memo) -> bool:
    """Whether a draft would ask for this node: it follows what is known, or nothing is known yet."""
    return node is memo.head or (node.parent is not None and node.parent.distribution is not None)


def _places(row: int, path: Iterable[Node], first: int, wanted: set[Node]) -> Iterator[tuple[int, int, Node]]:
    """The nodes of a path that a pass is to fill, with their row and token; the path begins at token `first`."""
    for index, node in enumerate(path, first):
        if node.distribution is None and (node in wanted or not node.committed):
            yield row, index, node


def _fill(places: Sequence[tuple[int, int, Node]], logits: torch.Tensor, first: int) -> None:
    """Give nodes their distributions, from logits `[rows, tokens, vocab]` that begin at token `first`."""
    if places:
        picked = logits[[row for row, _, _ in places], [index - first for _, index, _ in places]]
        for (_, _, node), distribution in zip(places, distributions(picked), strict=True):
            node.distribution = distribution
