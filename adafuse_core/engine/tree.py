"""KV memory as a tree: prompt and answer are stored once, and so is every token tried beyond them.

All that is asked of a sequence is read in one pass with a mask of ancestors and explicit positions. A branch copies
nothing. Which models can be read so is found out by `selftest.py`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from adafuse_core.engine.attention import TreePass
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node, unread
from adafuse_core.engine.numbers import distributions
from adafuse_core.engine.store import SPARE_TOKENS, Ask
from adafuse_core.text.tokens import Ids


class Slots:
    """Keys and values of one sequence: one slot per token, in any order; freed slots are used again.

    Args:
        capacity: Slots to begin with.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0  # slots from here on were never written
        self.trunk_read = 0  # tokens of the trunk that are read; they lie in the first slots, in order
        self.bias = np.full(capacity, -np.inf, np.float32)  # 0 for slots of the trunk and of committed nodes
        self.positions = np.zeros(capacity, np.int64)
        self._free: list[int] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys, values: [1, kv_heads, capacity, dim]

    def take(self) -> int:
        """A slot for one token."""
        if self._free:
            return heapq.heappop(self._free)
        self.extend(1)
        return self.used - 1

    def extend(self, count: int) -> None:
        """Use so many slots more, behind the others."""
        self.used += count
        if self.used > self.capacity:
            self.capacity = max(self.used, self.capacity + max(SPARE_TOKENS, self.capacity // 8))
            more = self.capacity - len(self.bias)
            self.bias = np.concatenate([self.bias, np.full(more, -np.inf, np.float32)])
            self.positions = np.concatenate([self.positions, np.zeros(more, np.int64)])

    def free(self, slot: int) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, slot)

    def write(self, layer: int, slots: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed, `[1, kv_heads, tokens, dim]`."""
        held = self._layers.get(layer)
        if held is None or held[0].shape[2] < self.capacity:
            held = self._layers[layer] = (
                self._enlarged(held and held[0], keys),
                self._enlarged(held and held[1], values),
            )
        for store, new in zip(held, (keys, values), strict=True):
            if isinstance(slots, slice):
                store[:, :, slots] = new
            else:
                store.index_copy_(2, slots.to(new.device), new)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[1, kv_heads, used, dim]`."""
        keys, values = self._layers[layer]
        return keys[:, :, : self.used], values[:, :, : self.used]

    def _enlarged(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        new = like.new_zeros(1, like.shape[1], self.capacity, like.shape[3])
        if old is not None:
            new[:, :, : old.shape[2]] = old
        return new

    @property
    def layers(self) -> int:
        """Number of layers that stored keys."""
        return len(self._layers)


class Branches:
    """What one pass reads of one sequence: a chunk of the trunk, then nodes."""

    def __init__(self, memo: Memo, slots: Slots, start: int, chunk: int, nodes: Sequence[Node]) -> None:
        self._slots = slots
        first = slots.trunk_read
        self.chunk, self.nodes = chunk, nodes
        self.length = chunk + len(nodes)
        self.stop = start + self.length  # in the flat row
        if first == 0 and chunk:
            slots.extend(len(memo.trunk))
        self.places = [node.held if node.held is not None else slots.take() for node in nodes]
        self.tokens = [*memo.trunk[first : first + chunk], *(node.token for node in nodes)]
        self.positions = [*range(first, first + chunk), *(node.depth - 1 for node in nodes)]
        written = [*range(first, first + chunk), *self.places]
        self._written = _as_slice(written)
        slots.bias[: first + chunk] = 0
        for node, place in zip(nodes, self.places, strict=True):
            if node.committed:
                slots.bias[place] = 0
        slots.positions[written] = self.positions
        self._bias = self._see(memo, first)
        self._biases: dict[tuple[int | None, torch.device, int], torch.Tensor] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed for these tokens."""
        self._slots.write(layer, self._written, keys, values)

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the sequence."""
        return self._slots.read(layer)

    def bias(self, window: int | None, like: torch.Tensor, repeats: int) -> torch.Tensor:
        """`[repeats * tokens, used]`: 0 where a token sees a slot, else -inf."""
        key = (window, like.device, repeats)
        if key not in self._biases:
            bias = self._bias
            if window is not None:
                distance = np.array(self.positions)[:, None] - self._slots.positions[: bias.shape[1]]
                bias = np.where(distance < window, bias, np.float32(-np.inf))
            tensor = torch.from_numpy(bias).to(like.device, like.dtype)
            self._biases[key] = tensor.repeat(repeats, 1) if repeats > 1 else tensor
        return self._biases[key]

    def _see(self, memo: Memo, first: int) -> Any:
        """`[tokens, used]`: 0 where a token sees a slot, else -inf."""
        used = self._slots.used
        bias = np.empty((self.length, used), np.float32)
        if self.chunk:  # slots of the trunk are in order
            later = np.arange(used) > first + np.arange(self.chunk)[:, None]
            bias[: self.chunk] = np.where(later, np.float32(-np.inf), np.float32(0))
        if not self.nodes:
            return bias
        bias[self.chunk :] = self._slots.bias[:used]
        place_of = dict(zip(self.nodes, self.places, strict=True))
        for row, node in enumerate(self.nodes, self.chunk):
            for ancestor in node.path():
                if ancestor.committed:
                    break
                bias[row, place_of.get(ancestor, ancestor.held)] = 0
            for later_node in memo.head.path():
                if later_node is ancestor:
                    break
                if (place := place_of.get(later_node, later_node.held)) is not None:
                    bias[row, place] = -np.inf
        return bias


class TreeStore:
    """Reads asks of many sequences in one pass.

    Args:
        model: One that `selftest.py` found to read trees as it reads plain text.
        chunk: Most tokens of prompts that one pass reads.
    """

    kind = "tree"

    def __init__(self, model: Model, *, chunk: int) -> None:
        self._model = model
        self._chunk = chunk

    def read(self, asks: Sequence[Ask]) -> None:
        """One pass, which answers the asks or brings them further; see `Store.read`."""
        taken: list[Memo] = []
        try:
            self._run(list(self._parts(asks, taken)))
        except BaseException:
            for memo in taken:
                memo.restart()
            raise

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one; what led elsewhere is dropped."""
        dropped = memo.commit(context)
        slots = memo.held
        if slots is None:
            return
        for node in dropped:
            if node.held is not None:
                slots.free(node.held)
        slots.bias[slots.trunk_read :] = -np.inf
        slots.bias[[node.held for node in memo.head.path() if node.held is not None]] = 0

    def tokens_held(self, memo: Memo) -> int:
        """Tokens whose keys and values are in memory."""
        return 0 if memo.held is None else int(memo.held.capacity)

    def layers_held(self, memo: Memo) -> int:
        """Number of layers that stored keys."""
        return 0 if memo.held is None else memo.held.layers

    def _parts(self, asks: Sequence[Ask], taken: list[Memo]) -> Iterator[Branches]:
        """What this pass reads; notes whose memos are touched."""
        left, start = self._chunk, 0
        for ask in asks:
            ends = ask.ends()
            slots = _slots(ask.memo)
            rest = len(ask.memo.trunk) - slots.trunk_read
            if rest and not left:
                continue
            chunk = min(rest, left)
            nodes = _nodes(ends) if chunk == rest else []
            if chunk or nodes:
                taken.append(ask.memo)
                part = Branches(ask.memo, slots, start, chunk, nodes)
                start, left = part.stop, left - chunk
                yield part

    def _run(self, parts: Sequence[Branches]) -> None:
        if not parts:
            return
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        keep = [index for part in parts for index in range(part.stop - len(part.nodes), part.stop)]
        with TreePass(parts) as tree:
            logits = self._model.read(tokens, positions, tree, keep or [len(tokens) - 1])  # [rows, vocab]
        nodes = [node for part in parts for node in part.nodes]
        places = [place for part in parts for place in part.places]
        for part in parts:
            part._slots.trunk_read += part.chunk
        if keep:
            for node, place, row in zip(nodes, places, distributions(logits), strict=True):
                node.held, node.distribution = place, row


def _slots(memo: Memo) -> Slots:
    if memo.held is None:
        memo.held = Slots(len(memo.ids) + SPARE_TOKENS)
    slots: Slots = memo.held
    return slots


def _nodes(ends: Sequence[Node]) -> list[Node]:
    """The nodes to read, parents first, none twice."""
    found: dict[Node, None] = {}
    for end in ends:
        found |= dict.fromkeys(reversed(list(unread(end))))
        if end.distribution is None:
            found[end] = None
    return list(found)


def _as_slice(places: list[int]) -> slice | torch.Tensor:
    if places and places[-1] - places[0] == len(places) - 1 and all(b > a for a, b in pairwise(places)):
        return slice(places[0], places[-1] + 1)
    return torch.tensor(places, dtype=torch.long)
