"""KV memory for any causal model: contexts are read as a whole, and drafts continue with the model's own cache.

Such a cache only grows. So a draft is read token by token, and the whole context is read again when the answer
continues with something else, such as another member's candidate. Only the next tokens of a draft use the cache;
candidates to score and guesses are read in a separate padded batch without it. `selftest.py` finds out what a
model's own cache can do.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch

from adafuse_core.engine.cache_growth import CacheGrowth, CacheUse, LiveCache, branching
from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_request import ReadRequest, paths_to_read
from adafuse_core.text.ids import Ids

_MOST_TOKENS = 8192  # of one pass, padding included
_CACHE_NAMES = ("past_key_values", "cache_params", "state")  # as models take them and hand them out


class PrefillStore:
    """Continues one cache for each sequence where it can, and reads other contexts as rows of a padded batch.

    Args:
        model: Any causal model.
        use: What its own cache can do; None to use none.

    Attributes:
        max_kv_tokens: Most tokens to hold, over all sequences; None for no bound. A sequence that finds no room is
            read in fresh passes.
    """

    kind = "prefill"

    def __init__(self, model: Model, use: CacheUse | None = None, *, max_kv_tokens: int | None = None) -> None:
        self.max_kv_tokens = max_kv_tokens
        self._model = model
        self._use = use
        self._holders: WeakSet[Memo] = WeakSet()  # sequences that may have a live cache
        taken = inspect.signature(model.module.forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in taken), _CACHE_NAMES[0])

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """At most two passes for each request that a cache serves, and one fresh pass over contexts of the others."""
        rows, wanted = [], set[Node]()
        for request in requests:
            ends = set(request.ends())
            paths = paths_to_read(ends, _path)
            if paths and not self._read_on(request.memo, ends, paths):
                rows += [(request.memo.trunk, path) for path in paths]
                wanted |= ends
        if rows:
            self._read_fresh(rows, wanted)

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one; a cache is dropped if none of its rows grows from it."""
        removed = set(memo.commit(context))
        live: LiveCache | None = memo.kv
        if live is not None and removed.issuperset(live.ends):
            memo.kv = None

    def tokens_held(self, memo: Memo) -> int:
        """Tokens of all rows of the live cache."""
        live: LiveCache | None = memo.kv
        return 0 if live is None else len(live.ends) * live.ends[0].depth

    def tokens_needed(self, request: ReadRequest) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request: one row for each context."""
        rows = paths_to_read(request.ends(), _path)
        return max(self.tokens_held(request.memo), sum(path[-1].depth for path in rows))

    def _read_on(self, memo: Memo, wanted: set[Node], paths: list[list[Node]]) -> bool:
        """Read paths with the live cache or a new one, which stays for the next tokens of a draft.

        Returns:
            Whether that was possible and worth it; if not, a fresh pass must read the paths.
        """
        if self._use is None:
            return False
        live: LiveCache | None = memo.kv
        if live is not None and (growth := live.growth_to(paths)) is not None and self._can_grow(memo, growth):
            self._grow(memo, wanted, growth)
            return True
        if not all(_is_next(path[-1], memo) for path in paths):  # candidates and guesses: a draft seldom continues them
            return False
        if len(paths) == 1:
            if fits := self._fits(memo, 1, paths[0][-1].depth):
                self._begin(memo, wanted, paths[0])
            return fits
        shared, growth = branching(paths)
        if shared and self._can_grow(memo, growth) and self._begin(memo, wanted, shared):
            self._grow(memo, wanted, growth)
            return True
        return False

    def _can_grow(self, memo: Memo, growth: CacheGrowth) -> bool:
        """Whether the model's cache can grow like this, and there is room."""
        assert self._use is not None
        return self._use.allows(growth) and self._fits(memo, len(growth.rows), growth.nodes[0][-1].depth)

    def _fits(self, memo: Memo, rows: int, length: int) -> bool:
        """Whether there is room for a cache of this size; if not, the sequence gives up its cache."""
        if self.max_kv_tokens is None:
            return True
        others = sum(self.tokens_held(other) for other in self._holders if other is not memo)
        if others + rows * length <= self.max_kv_tokens:
            return True
        memo.kv = None
        return False

    def _begin(self, memo: Memo, wanted: set[Node], path: list[Node]) -> bool:
        """Read a context with a new cache; False if the model hands out none."""
        memo.kv = None
        length = _length(memo.trunk, path)
        places = list(_places(0, path, len(memo.trunk), wanted))
        first = min((index for _, index, _ in places), default=length - 1)
        logits, cache = self._model.extend_cache(
            [_tokens(memo.trunk, path)], None, self._cache_name, last=length - first
        )
        _fill(places, logits, first)
        return self._hold(memo, cache, path[-1:])

    def _grow(self, memo: Memo, wanted: set[Node], growth: CacheGrowth) -> None:
        """Read on with the live cache, which is lost if the pass fails."""
        live: LiveCache = memo.kv
        memo.kv = None
        if not growth.keeps_rows:
            with torch.inference_mode():
                live.cache.reorder_cache(torch.tensor(growth.rows, device=self._model.device))
        rows = [_tokens((), new) for new in growth.nodes]
        logits, cache = self._model.extend_cache(rows, live.cache, self._cache_name, last=len(rows[0]))
        _fill([place for row, new in enumerate(growth.nodes) for place in _places(row, new, 0, wanted)], logits, 0)
        self._hold(memo, cache, [new[-1] for new in growth.nodes])

    def _hold(self, memo: Memo, cache: Any, ends: list[Node]) -> bool:
        """Keep what a model handed out, if that was a cache."""
        if cache is not None:
            memo.kv = LiveCache(cache, ends)
            self._holders.add(memo)
        return cache is not None

    def _read_fresh(self, rows: list[tuple[Ids, list[Node]]], wanted: set[Node]) -> None:
        """One pass without a cache over as many of the contexts as it may hold, each a trunk and the path below it."""
        rows.sort(key=lambda row: _length(*row), reverse=True)
        longest = _length(*rows[0])
        rows = rows[: max(1, _MOST_TOKENS // longest)]
        # Padding is on the right: later tokens can't change earlier distributions.
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
