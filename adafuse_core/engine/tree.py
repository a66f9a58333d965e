"""KV memory as a tree: prompt and answer are stored once, and so is every token tried beyond them.

Everything that a request wants is read in one pass, with a mask of ancestors and explicit positions. A branch copies
nothing. `selftest.py` finds out which models can be read like this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from adafuse_core.engine.attention import RaggedPass
from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest, nodes_to_read
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import OwnMemory, Slots, grown
from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.text.ids import Ids


class TreeStore:
    """Reads requests of many sequences in one pass.

    Args:
        model: One that `selftest.py` found to read trees as it reads plain text.
        chunk: Most tokens of prompts that one pass reads.
        most: Tokens that the memory of one sequence is meant not to exceed.
        fixed: Runs small passes in fixed shapes; None to give each pass a shape of its own.
    """

    kind = "tree"

    def __init__(self, model: Model, *, chunk: int, most: int | None = None, fixed: FixedPasses | None = None) -> None:
        self._model = model
        self._chunk = chunk
        self._most = most
        self._fixed = fixed

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """One pass for all requests, or for as many as its chunk of prompts allows; see `Store.read`."""
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
        """Make a context the committed one, and free the slots of branches that do not lie on it; see `Store`."""
        removed = memo.commit(context)
        slots: Slots | None = memo.kv
        if slots is None:
            return
        for node in removed:
            if node.kv is not None:
                slots.free(node.kv)
        slots.committed_mask[slots.trunk_read :] = -np.inf
        slots.committed_mask[[node.kv for node in memo.head.path() if node.kv is not None]] = 0

    def tokens_held(self, memo: Memo) -> int:
        """Tokens for whose keys and values memory is taken."""
        return 0 if memo.kv is None else int(memo.kv.capacity)

    def tokens_needed(self, request: ReadRequest) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request."""
        new = sum(node.kv is None for node in nodes_to_read(request.ends()))
        slots: Slots | None = request.memo.kv
        if slots is None:
            return grown(self._first_capacity(request.memo), len(request.memo.trunk) + new, self._most)
        return slots.capacity_for(new)

    def layers_held(self, memo: Memo) -> int:
        """Number of layers that stored keys."""
        return 0 if memo.kv is None else memo.kv.memory.layers()

    def _parts(self, requests: Sequence[ReadRequest], touched: list[Memo]) -> Iterator[SequencePart]:
        """What this pass reads; adds the memos whose memory it changes to `touched`."""
        ends = [request.ends() for request in requests]
        memos = [request.memo for request in requests]
        unread = [len(memo.trunk) - (0 if memo.kv is None else memo.kv.trunk_read) for memo in memos]
        for index, chunk in enumerate(shared_chunk(unread, self._chunk)):
            memo, nodes = memos[index], nodes_to_read(ends[index]) if chunk == unread[index] else []
            if chunk or nodes:
                touched.append(memo)
                yield SequencePart(memo, self._slots(memo), chunk, nodes)

    def _slots(self, memo: Memo) -> Slots:
        if memo.kv is None:
            memory = OwnMemory() if self._fixed is None else self._fixed.pool.rent()
            memo.kv = Slots(self._first_capacity(memo), memory, self._most)
        slots: Slots = memo.kv
        return slots

    def _first_capacity(self, memo: Memo) -> int:
        return grown(len(memo.ids), len(memo.ids) + SPARE_TOKENS, self._most)

    def _run(self, parts: Sequence[SequencePart]) -> None:
        logits = None
        if self._fixed is not None and not any(part.chunk for part in parts):
            logits = self._fixed.read(parts)
        if logits is None:
            logits = self._logits(parts)
        for part in parts:
            part.slots.trunk_read += part.chunk
        nodes = [node for part in parts for node in part.nodes]
        slots = [slot for part in parts for slot in part.node_slots]
        if nodes:
            for node, slot, row in zip(nodes, slots, distributions(logits), strict=True):
                node.kv, node.distribution = slot, row

    def _logits(self, parts: Sequence[SequencePart]) -> torch.Tensor:
        """After each node, `[nodes, vocab]`, in a ragged pass."""
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        is_node = [index >= part.chunk for part in parts for index in range(len(part.tokens))]
        keep = [index for index, wanted in enumerate(is_node) if wanted]
        with RaggedPass(parts) as tree:
            return self._model.read(tokens, positions, tree, keep or [len(tokens) - 1])


def shared_chunk(unread: Sequence[int], chunk: int) -> list[int]:
    """How many tokens of each prompt a pass reads: a quarter is for the oldest, the rest for the shortest first.

    So a short prompt does not wait for the long ones before it, and those do not wait for ever.

    Args:
        unread: Tokens of each prompt that no pass has read, the oldest prompt first.
        chunk: Most tokens of all prompts.
    """
    oldest = next((index for index, count in enumerate(unread) if count), 0)
    shares = [min(count, chunk // 4) if index == oldest else 0 for index, count in enumerate(unread)]
    left = chunk - sum(shares)
    for index in sorted(range(len(unread)), key=unread.__getitem__):
        more = min(unread[index] - shares[index], left)
        shares[index] += more
        left -= more
    return shares
