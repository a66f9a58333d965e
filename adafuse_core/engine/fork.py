"""KV store by forking: the model's caches after some contexts are kept, and every pass extends a fork of one cache.

A dynamic cache layer *re-binds* its tensors when it grows, so a copy of the layer objects that shares their tensors is
an exact snapshot at no cost. Contexts that branch are rows of one batch. No cache is ever cropped, so sliding-window,
chunked and recurrent layers are as exact as full attention. (Measured on twelve model families; `selftest.py` tests
each loaded model.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from adafuse_core.engine.cache_beginnings import UncutLayers, can_cut, cut, fork, next_length, one_row, uncut_layers
from adafuse_core.engine.distributions import check_finite, distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_request import ReadRequest, paths_to_read
from adafuse_core.engine.store import trunk_left
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
    """The kept states of one sequence: after its trunk, near its committed end (the anchor), and of the last passes.

    `uncut` are the layers that can't be cut, at some lengths of the trunk.
    """

    trunk: Any
    trunk_read: int = 0
    anchor: Node | None = None
    passes: deque[list[Node]] = field(default_factory=deque)  # nodes with a state, oldest pass first
    uncut: list[UncutLayers] = field(default_factory=list)  # shortest first


class ForkStore:
    """Reads each request with forks of the caches that earlier passes left.

    Args:
        model: A model for which `store_problem` returned None.
        chunk: Most prompt tokens that one pass reads.
    """

    kind = "fork"
    one_pass = False

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

    def unread(self, memo: Memo) -> int:
        """See `Store.unread`."""
        return trunk_left(memo)

    def settle(self, memo: Memo) -> None:
        """Keep the trunk and the anchor; only the anchor if shorter states can be cut from it. See `Store.settle`."""
        self.commit(memo, memo.ids)
        memo.settle()
        kept: Snapshots | None = memo.kv
        if kept is None:
            return
        passes = [node for nodes in kept.passes for node in nodes]
        kept.passes.clear()
        self._release(kept, passes)
        state: State | None = kept.anchor.kv if kept.anchor is not None else None
        if kept.anchor is not None and state is not None and can_cut(state.cache):
            memo.kv = Snapshots(state.cache if state.rows == 1 else one_row(state.cache, state.row), kept.anchor.depth)
            kept.anchor.kv = None

    def reusable(self, donor: Memo, length: int) -> int:
        """See `Store.reusable`: any number of tokens if all layers can be cut, else those of some state."""
        return max((depth for depth, *_ in _beginnings(donor, length)), default=0)

    def adopt(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        """Start with a state of the donor, or with a part of one; see `Store.adopt`."""
        kept: Snapshots = donor.kv
        _, state, state_depth = next(each for each in _beginnings(donor, length) if each[0] == length)
        uncut = [each for each in kept.uncut if each.length <= length]
        with torch.inference_mode():
            if state_depth == length:
                trunk = fork(state.cache) if state.rows == 1 else one_row(state.cache, state.row)
            else:
                at_length = None if can_cut(state.cache) else uncut[-1]
                trunk = cut(state.cache, state.row, length, at_length)
        memo.kv = Snapshots(trunk, length, uncut=uncut)
        if move:
            donor.restart()

    def tokens_held(self, memo: Memo) -> int:
        """Tokens of all states."""
        kept: Snapshots | None = memo.kv
        if kept is None:
            return 0
        nodes = {node for nodes in kept.passes for node in nodes} | ({kept.anchor} if kept.anchor else set())
        return kept.trunk_read + sum(node.depth for node in nodes if node.kv is not None)

    def tokens_needed(self, request: ReadRequest, adopted: int = 0, taken_over: int = 0) -> int:
        """Each row becomes a state, beside that of the trunk if the trunk is read; see `Store.tokens_needed`."""
        rows = paths_to_read(request.ends(), _path)
        trunk = adopted if adopted == len(request.memo.trunk) else 0
        return self.tokens_held(request.memo) + trunk + sum(path[-1].depth for path in rows)

    def _read(self, memo: Memo, ends: Sequence[Node]) -> None:
        if memo.kv is None:
            memo.kv = Snapshots(self._model.new_cache())
        kept: Snapshots = memo.kv
        if trunk_left(memo):
            self._read_trunk(memo, kept)
            return
        groups: dict[int, list[tuple[State, list[Node]]]] = {}  # by cache
        for path in paths_to_read(ends, _path):
            above = path[0].parent
            state = above.kv if above is not None and above.kv is not None else State(kept.trunk, 0, 1)
            groups.setdefault(id(state.cache), []).append((state, path))
        if groups:
            memo.tokens_read += sum(len(path) for group in groups.values() for _, path in group)
            kept.passes.append([node for group in groups.values() for node in self._run(group)])
            if len(kept.passes) > _KEPT_PASSES:
                self._release(kept, kept.passes.popleft())

    def _read_trunk(self, memo: Memo, kept: Snapshots) -> None:
        """Read the next chunk of a prompt."""
        ids = memo.trunk[kept.trunk_read : kept.trunk_read + self._chunk]
        check_finite(self._model.forward([ids], kept.trunk, last=1))
        kept.trunk_read += len(ids)
        memo.tokens_read += len(ids)
        if not can_cut(kept.trunk) and kept.trunk_read >= next_length(
            [each.length for each in kept.uncut], self._chunk
        ):
            kept.uncut.append(uncut_layers(kept.trunk, kept.trunk_read))

    def _run(self, group: Sequence[tuple[State, list[Node]]]) -> list[Node]:
        """Read paths that continue one cache; returns the nodes that get a state."""
        first = group[0][0]
        cache = fork(first.cache)
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


def _beginnings(donor: Memo, length: int) -> Iterator[tuple[int, State, int]]:
    """Beginnings of at most `length` tokens: their length, and a state from which they can be made with its depth."""
    kept: Snapshots | None = donor.kv
    if kept is None:
        return
    states = [(kept.trunk_read, State(kept.trunk, 0, 1))]
    states += ((node.depth, node.kv) for node in donor.head.from_root() if node.kv is not None)
    for depth, state in states:
        if depth <= length:
            yield depth, state, depth
        elif can_cut(state.cache):
            yield length, state, depth
        else:
            yield from ((each.length, state, depth) for each in kept.uncut if each.length <= length)
