"""KV store by forking: the model's caches after some contexts are kept, and every pass extends a fork of one cache.

A dynamic cache layer *re-binds* its tensors when it grows, so a copy of the layer objects that shares their tensors is
an exact snapshot at no cost. Contexts that branch are rows of one batch. No cache is ever cropped, so sliding-window,
chunked and recurrent layers are as exact as full attention. (Measured on twelve model families; `selftest.py` tests
each loaded model.)
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_request import ReadRequest, paths_to_read
from adafuse_core.text.ids import Ids

_KEPT_PASSES = 2  # whose states are kept: a draft reads one token beyond the word that is committed


@dataclass
class State:
    """The model's state after a context: one row of a cache that has `rows` rows."""

    cache: Any
    row: int
    rows: int


@dataclass
class Snapshots:
    """The kept states of one sequence: after its trunk, near its committed end (the anchor), and of the last passes."""

    trunk: Any
    trunk_read: int = 0
    anchor: Node | None = None
    passes: deque[list[Node]] = field(default_factory=deque)  # nodes with a state, oldest pass first


class ForkStore:
    """Reads each request with forks of the caches that earlier passes left.

    Args:
        model: A model for which `store_problem` returned None.
        chunk: Most prompt tokens that one pass reads.
    """

    kind = "fork"

    def __init__(self, model: Model, *, chunk: int) -> None:
        self._model = model
        self._chunk = chunk

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """One chunk of each prompt, or one pass for each cache that contexts continue; see `Store.read`."""
        for request in requests:
            ends = request.ends()
            try:
                self._read(request.memo, ends)
            except BaseException:
                request.memo.restart()
                raise

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one, and keep the state nearest to its end; see `Store.commit`."""
        memo.commit(context)
        kept: Snapshots | None = memo.kv
        if kept is None:
            return
        anchor = next(node for node in memo.head.path() if node.kv is not None or node.parent is None)
        if anchor is not kept.anchor:
            old, kept.anchor = kept.anchor, anchor
            self._release(kept, [old] if old else [])

    def tokens_held(self, memo: Memo) -> int:
        """Tokens of all states."""
        kept: Snapshots | None = memo.kv
        if kept is None:
            return 0
        nodes = {node for nodes in kept.passes for node in nodes} | ({kept.anchor} if kept.anchor else set())
        return kept.trunk_read + sum(node.depth for node in nodes if node.kv is not None)

    def tokens_needed(self, request: ReadRequest) -> int:
        """See `Store.tokens_needed`; each row becomes a state."""
        rows = paths_to_read(request.ends(), _path)
        return self.tokens_held(request.memo) + sum(path[-1].depth for path in rows)

    def _read(self, memo: Memo, ends: Sequence[Node]) -> None:
        if memo.kv is None:
            memo.kv = Snapshots(self._model.new_cache())
        kept: Snapshots = memo.kv
        if kept.trunk_read < len(memo.trunk):
            ids = memo.trunk[kept.trunk_read : kept.trunk_read + self._chunk]
            self._model.forward([ids], kept.trunk, last=1)
            kept.trunk_read += len(ids)
            return
        groups: dict[int, list[tuple[State, list[Node]]]] = {}  # by cache
        for path in paths_to_read(ends, _path):
            above = path[0].parent
            state = above.kv if above is not None and above.kv is not None else State(kept.trunk, 0, 1)
            groups.setdefault(id(state.cache), []).append((state, path))
        if groups:
            kept.passes.append([node for group in groups.values() for node in self._run(group)])
            if len(kept.passes) > _KEPT_PASSES:
                self._release(kept, kept.passes.popleft())

    def _run(self, group: Sequence[tuple[State, list[Node]]]) -> list[Node]:
        """Read paths that continue one cache; returns the nodes that get a state."""
        first = group[0][0]
        cache = _fork(first.cache)
        rows = [state.row for state, _ in group]
        if rows != list(range(first.rows)):
            cache.reorder_cache(torch.tensor(rows, device=self._model.device))
        longest = max(len(path) for _, path in group)
        # Padding is on the right: later tokens can't change earlier distributions.
        padded = [[*(node.token for node in path), *[0] * (longest - len(path))] for _, path in group]
        logits = self._model.forward(padded, cache)  # [rows, longest, vocab]
        wanted = {
            node: row * longest + index
            for row, (_, path) in enumerate(group)
            for index, node in enumerate(path)
            if node.distribution is None
        }
        picked = logits.flatten(0, 1)[torch.tensor(list(wanted.values()), device=logits.device)]
        for node, distribution in zip(wanted, distributions(picked), strict=True):
            node.distribution = distribution
        unpadded = [(row, path[-1]) for row, (_, path) in enumerate(group) if len(path) == longest]
        for row, node in unpadded:
            node.kv = State(cache, row, len(group))
        return [node for _, node in unpadded]

    def _release(self, kept: Snapshots, nodes: Sequence[Node]) -> None:
        """Drop the states of nodes, except the anchor's and those of the kept passes."""
        alive = {id(node) for nodes in kept.passes for node in nodes} | {id(kept.anchor)}
        for node in nodes:
            if id(node) not in alive:
                node.kv = None


def _path(end: Node) -> list[Node]:
    """The nodes from below the nearest ancestor with a state down to a node."""
    path = [end]
    while path[-1].parent is not None and path[-1].parent.parent is not None and path[-1].parent.kv is None:
        path.append(path[-1].parent)
    return path[::-1]


def _fork(cache: DynamicCache) -> Any:
    """An independent copy of a cache that shares its keys and values, which are never written in place."""
    fork = copy.copy(cache)
    fork.layers = []
    for layer in cache.layers:
        twin = copy.copy(layer)
        for name, value in vars(layer).items():
            if name not in ("keys", "values"):
                setattr(twin, name, _cloned(value))
        fork.layers.append(twin)
    return fork


def _cloned(value: Any) -> Any:
    """A copy of recurrent or convolution states, which the model writes in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    return value
