"""KV store as a token tree: prompt, answer, and every candidate token are stored once.

One pass reads all requests, with explicit positions and a mask of each token's ancestors. Branches copy nothing.
`selftest.py` finds out which models support this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np
import torch

from adafuse_core.engine.attention import RaggedPass
from adafuse_core.engine.distributions import check_finite, distributions
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest, nodes_to_read
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import OwnMemory, PooledMemory, Slots, grown
from adafuse_core.engine.store import SPARE_TOKENS, trunk_left
from adafuse_core.text.ids import Ids


class TreeStore:
    """Reads requests of many sequences in one pass.

    Args:
        model: A model for which `tree_problem` returned None.
        chunk: Most prompt tokens that one pass reads.
        max_kv_tokens: Capacity that a sequence exceeds only if its own tokens need more; None for no bound.
        fixed: Runs small passes in fixed shapes; None to run every pass in its own shape.
    """

    kind = "tree"
    one_pass = True

    def __init__(
        self, model: Model, *, chunk: int, max_kv_tokens: int | None = None, fixed: FixedPasses | None = None
    ) -> None:
        self._model = model
        self._chunk = chunk
        self._max_kv_tokens = max_kv_tokens
        self._fixed = fixed

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """One pass for all requests, or for as many as the chunk of prompt tokens allows; see `Store.read`."""
        touched: list[Memo] = []
        try:
            if parts := list(self._parts(requests, touched)):
                self._run(parts)
        except BaseException:
            for memo in touched:
                slots: Slots | None = memo.kv
                memo.restart()
                if slots is not None:
                    slots.memory.drop()
            raise

    def commit(self, memo: Memo, context: Ids) -> None:
        """See `Store.commit`."""
        removed = memo.commit(context)
        slots: Slots | None = memo.kv
        if slots is None:
            return
        for node in removed:
            if node.kv is not None:
                slots.free(node.kv)
        slots.committed_mask[slots.trunk_read :] = -np.inf
        slots.committed_mask[[node.kv for node in memo.head.path() if node.kv is not None]] = 0

    def unread(self, memo: Memo) -> int:
        """See `Store.unread`."""
        return trunk_left(memo)

    def settle(self, memo: Memo) -> None:
        """See `Store.settle`."""
        slots: Slots | None = memo.kv
        for node in memo.settle():
            if slots is not None and node.kv is not None:
                slots.free(node.kv)

    def reusable(self, donor: Memo, length: int) -> int:
        """The tokens that were read; see `Store.reusable`."""
        if donor.kv is None:
            return 0
        return length if length <= donor.kv.trunk_read else min(length, len(_slots_read(donor)))

    def adopt(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        """Share the donor's cells in a pool; copy or take over its own tensors; see `Store.adopt`."""
        old: Slots = donor.kv
        capacity = self._first_capacity(memo)
        with torch.inference_mode():
            memory = old.memory.beginning(_slots_read(donor)[:length], capacity, move=move)
        if move:
            donor.restart()
        memo.kv = Slots(max(capacity, memory.capacity), memory, self._max_kv_tokens)
        memo.kv.begin(len(memo.trunk), length)

    def tokens_held(self, memo: Memo) -> int:
        """See `Store.tokens_held`."""
        return 0 if memo.kv is None else int(memo.kv.capacity)

    def tokens_needed(self, request: ReadRequest, adopted: int = 0, taken_over: int = 0) -> int:
        """Memory that is taken over stays as large as it was, but for cells of a pool; see `Store.tokens_needed`."""
        new = sum(node.kv is None for node in nodes_to_read(request.ends()))
        slots: Slots | None = request.memo.kv
        if slots is None:
            capacity = self._first_capacity(request.memo)
            if self._fixed is None:
                capacity = max(capacity, taken_over)
            return grown(capacity, len(request.memo.trunk) + new, self._max_kv_tokens)
        return slots.capacity_for(new)

    def layers_held(self, memo: Memo) -> int:
        """Number of layers that have stored keys."""
        return 0 if memo.kv is None else len(memo.kv.memory.layers)

    def _parts(self, requests: Sequence[ReadRequest], touched: list[Memo]) -> Iterator[SequencePart]:
        """The tokens that this pass reads. Adds the memos whose memory changes to `touched`."""
        ends = [request.ends() for request in requests]
        memos = [request.memo for request in requests]
        unread = [self.unread(memo) for memo in memos]
        for index, chunk in enumerate(shared_chunk(unread, self._chunk)):
            memo, nodes = memos[index], nodes_to_read(ends[index]) if chunk == unread[index] else []
            if chunk or nodes:
                touched.append(memo)
                if memo.kv is None:
                    memory = OwnMemory() if self._fixed is None else PooledMemory(self._fixed.pool)
                    memo.kv = Slots(self._first_capacity(memo), memory, self._max_kv_tokens)
                yield SequencePart(memo, memo.kv, chunk, nodes)

    def _first_capacity(self, memo: Memo) -> int:
        return grown(len(memo.ids), len(memo.ids) + SPARE_TOKENS, self._max_kv_tokens)

    def _run(self, parts: Sequence[SequencePart]) -> None:
        logits = None
        if self._fixed is not None and not any(part.chunk for part in parts):
            logits = self._fixed.read(parts)
        if logits is None:
            logits = self._ragged_logits(parts)
        if not any(part.nodes for part in parts):
            check_finite(logits)  # what was read may serve other sequences, too
        for part in parts:
            part.slots.trunk_read += part.chunk
            part.memo.tokens_read += len(part.tokens)
        nodes = [node for part in parts for node in part.nodes]
        slots = [slot for part in parts for slot in part.node_slots]
        if nodes:
            for node, slot, distribution in zip(nodes, slots, distributions(logits), strict=True):
                node.kv, node.distribution = slot, distribution

    def _ragged_logits(self, parts: Sequence[SequencePart]) -> torch.Tensor:
        """Logits after each node, `[nodes, vocab]`."""
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        is_node = [index >= part.chunk for part in parts for index in range(len(part.tokens))]
        keep = [index for index, wanted in enumerate(is_node) if wanted]
        with RaggedPass(parts) as tree:
            return self._model.read_tree(tokens, positions, tree, keep or [len(tokens) - 1])


def _slots_read(memo: Memo) -> list[int]:
    """The slots of the first committed tokens, in order, as far as they were read."""
    slots: Slots = memo.kv
    found = list(range(slots.trunk_read))
    if slots.trunk_read == len(memo.trunk):
        found += (node.kv for node in takewhile(lambda node: node.kv is not None, memo.head.from_root()))
    return found


def shared_chunk(unread: Sequence[int], chunk: int) -> list[int]:
    """How many tokens of each prompt a pass reads: a quarter for the oldest prompt, the rest for the shortest first.

    So a short prompt does not wait for the long prompts before it, and long prompts do not starve.

    Args:
        unread: Unread tokens of each prompt, the oldest prompt first.
        chunk: Maximum tokens of all prompts.
    """
    oldest = next((index for index, count in enumerate(unread) if count), 0)
    shares = [min(count, chunk // 4) if index == oldest else 0 for index, count in enumerate(unread)]
    left = chunk - sum(shares)
    for index in sorted(range(len(unread)), key=unread.__getitem__):
        more = min(unread[index] - shares[index], left)
        shares[index] += more
        left -= more
    return shares
