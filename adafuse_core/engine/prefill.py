"""KV store for any causal model: contexts are read from their start, and drafts continue with the model's own cache.

Such a cache can only be extended. So a draft is read token by token, and the whole context is read again when the
answer continues with other tokens, such as another member's candidate. Only the next tokens of a draft use the cache;
candidates to score and guesses are read in a separate padded batch without it. `selftest.py` finds out what a model's
own cache supports.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch

from adafuse_core.engine.cache_growth import CacheAbilities, CacheGrowth, LiveCache, split_shared
from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_request import ReadRequest, paths_to_read
from adafuse_core.text.ids import Ids

_MAX_TOKENS = 8192  # of one pass, padding included
_CACHE_NAMES = ("past_key_values", "cache_params", "state")  # of the argument, and of the output


class PrefillStore:
    """Keeps one cache per sequence where possible, and reads other contexts as rows of a padded batch.

    Args:
        model: Any causal model.
        abilities: What its own cache supports; None to use no cache.
        max_kv_tokens: Most tokens to hold, over all sequences; None for no bound. A sequence without room is read in
            passes without a cache.
    """

    kind = "prefill"
    one_pass = False

    def __init__(
        self, model: Model, abilities: CacheAbilities | None = None, *, max_kv_tokens: int | None = None
    ) -> None:
        self.max_kv_tokens = max_kv_tokens
        self._model = model
        self._abilities = abilities
        self._holders: WeakSet[Memo] = WeakSet()  # sequences that may have a live cache
        arguments = inspect.signature(model.module.forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in arguments), _CACHE_NAMES[0])

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """At most two passes for each request that can use a cache, and one pass without cache for the others."""
        rows, wanted = [], set[Node]()
        for request in requests:
            ends = set(request.ends())
            paths = paths_to_read(ends, Node.from_root)
            if paths and not self._read_with_cache(request.memo, ends, paths):
                rows += [(request.memo, path) for path in paths]
                wanted |= ends
        if rows:
            self._read_without_cache(rows, wanted)

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one. Drops the cache if none of its rows continues the context."""
        removed = set(memo.commit(context))
        live: LiveCache | None = memo.kv
        if live is not None and removed.issuperset(live.ends):
            memo.kv = None

    def unread(self, memo: Memo) -> int:
        """See `Store.unread`."""
        return 0

    def settle(self, memo: Memo) -> None:
        """Free all memory, since nothing is reusable; see `Store.settle`."""
        memo.restart()

    def reusable(self, donor: Memo, length: int) -> int:
        """Nothing, since the model's own cache belongs to the draft that it read; see `Store.reusable`."""
        return 0

    def adopt(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        """Not called, since nothing is reusable."""
        raise NotImplementedError

    def tokens_held(self, memo: Memo) -> int:
        """Tokens of all rows of the live cache."""
        live: LiveCache | None = memo.kv
        return 0 if live is None else len(live.ends) * live.ends[0].depth

    def tokens_needed(self, request: ReadRequest, adopted: int = 0, taken_over: int = 0) -> int:
        """See `Store.tokens_needed`; assumes one row per context."""
        rows = paths_to_read(request.ends(), Node.from_root)
        return max(self.tokens_held(request.memo), sum(path[-1].depth for path in rows))

    def _read_with_cache(self, memo: Memo, wanted: set[Node], paths: list[list[Node]]) -> bool:
        """Read paths with the live cache, or with a new one that is kept for the next tokens of a draft.

        False if a cache can't be used, or would not help later reads: the paths must be read without cache.
        """
        if self._abilities is None:
            return False
        live: LiveCache | None = memo.kv
        if live is not None and (growth := live.growth_to(paths)) is not None and self._can_grow(memo, growth):
            self._extend(memo, wanted, growth)
            return True
        if not all(_is_next(path[-1], memo) for path in paths):  # candidates and guesses: a draft seldom continues them
            return False
        if len(paths) == 1:
            if fits := self._fits(memo, 1, paths[0][-1].depth):
                self._prefill(memo, wanted, paths[0])
            return fits
        shared, growth = split_shared(paths)
        if shared and self._can_grow(memo, growth) and self._prefill(memo, wanted, shared):
            self._extend(memo, wanted, growth)
            return True
        return False

    def _can_grow(self, memo: Memo, growth: CacheGrowth) -> bool:
        """Whether the model's cache can grow like this, and there is room."""
        assert self._abilities is not None
        return self._abilities.allow(growth) and self._fits(memo, len(growth.rows), growth.nodes[0][-1].depth)

    def _fits(self, memo: Memo, rows: int, length: int) -> bool:
        """Whether there is room for a cache of this size; if not, the sequence loses its cache."""
        if self.max_kv_tokens is None:
            return True
        others = sum(self.tokens_held(other) for other in self._holders if other is not memo)
        if others + rows * length <= self.max_kv_tokens:
            return True
        memo.kv = None
        return False

    def _prefill(self, memo: Memo, wanted: set[Node], path: list[Node]) -> bool:
        """Read a context into a new cache; False if the model returns no cache."""
        memo.kv = None
        tokens = _tokens(memo.trunk, path)
        unfilled = list(_unfilled(0, path, len(memo.trunk), wanted))
        first = min((index for _, index, _ in unfilled), default=len(tokens) - 1)
        logits, cache = self._model.extend_cache([tokens], None, self._cache_name, last=len(tokens) - first)
        _fill(unfilled, logits, first)
        memo.tokens_read += len(tokens)
        return self._keep_cache(memo, cache, path[-1:])

    def _extend(self, memo: Memo, wanted: set[Node], growth: CacheGrowth) -> None:
        """Extend the live cache, which is lost if the pass fails."""
        live: LiveCache = memo.kv
        memo.kv = None
        if not growth.keeps_rows:
            with torch.inference_mode():
                live.cache.reorder_cache(torch.tensor(growth.rows, device=self._model.device))
        rows = [_tokens((), new) for new in growth.nodes]
        memo.tokens_read += sum(map(len, rows))
        logits, cache = self._model.extend_cache(rows, live.cache, self._cache_name, last=len(rows[0]))
        _fill([each for row, new in enumerate(growth.nodes) for each in _unfilled(row, new, 0, wanted)], logits, 0)
        self._keep_cache(memo, cache, [new[-1] for new in growth.nodes])

    def _keep_cache(self, memo: Memo, cache: Any, ends: list[Node]) -> bool:
        """Keep the cache that a model returned, if any."""
        if cache is not None:
            memo.kv = LiveCache(cache, ends)
            self._holders.add(memo)
        return cache is not None

    def _read_without_cache(self, rows: list[tuple[Memo, list[Node]]], wanted: set[Node]) -> None:
        """One pass over as many of the contexts as `_MAX_TOKENS` allows, each a memo's trunk and a path below it."""
        rows.sort(key=lambda row: row[1][-1].depth, reverse=True)
        longest = rows[0][1][-1].depth
        rows = rows[: max(1, _MAX_TOKENS // longest)]
        for memo, path in rows:
            memo.tokens_read += path[-1].depth
        # Padding is on the right: later tokens can't change earlier distributions.
        padded = [ids + [0] * (longest - len(ids)) for ids in (_tokens(memo.trunk, path) for memo, path in rows)]
        unfilled = [
            each for row, (memo, path) in enumerate(rows) for each in _unfilled(row, path, len(memo.trunk), wanted)
        ]
        first = min(index for _, index, _ in unfilled)
        logits = self._model.forward(padded, last=longest - first)  # [rows, longest - first, vocab]
        _fill(unfilled, logits, first)


def _tokens(trunk: Ids, path: Iterable[Node]) -> list[int]:
    return [*trunk, *(node.token for node in path)]


def _is_next(node: Node, memo: Memo) -> bool:
    """Whether a draft could ask for this node: it is the head, or a pass has computed its parent's distribution."""
    return node is memo.head or (node.parent is not None and node.parent.distribution is not None)


def _unfilled(row: int, path: Iterable[Node], first: int, wanted: set[Node]) -> Iterator[tuple[int, int, Node]]:
    """The nodes of a path that need a distribution, with their row and token; the path starts at token `first`."""
    for index, node in enumerate(path, first):
        if node.distribution is None and (node in wanted or not node.committed):
            yield row, index, node


def _fill(unfilled: Sequence[tuple[int, int, Node]], logits: torch.Tensor, first: int) -> None:
    """Set the distributions of nodes from logits `[rows, tokens, vocab]` that start at token `first`."""
    if unfilled:
        picked = logits[[row for row, _, _ in unfilled], [index - first for _, index, _ in unfilled]]
        for (_, _, node), distribution in zip(unfilled, distributions(picked), strict=True):
            node.distribution = distribution
