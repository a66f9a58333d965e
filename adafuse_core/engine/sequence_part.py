"""The tokens of one sequence that a pass reads, with their KV slots and attention mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.slots import Address, PooledMemory, Slots

_MASKED = np.float32(-np.inf)


class SequencePart:
    """A chunk of the trunk, then nodes.

    Args:
        memo: The sequence's memo.
        slots: The sequence's slots; every token read gets one.
        chunk: Number of trunk tokens to read, after those read before.
        nodes: Nodes to read, parents first; empty unless this chunk is the last one.

    Attributes:
        tokens: Token ids, `[tokens]`.
        positions: Position of each token in the sequence, `[tokens]`.
        node_slots: Slot of each node, `[nodes]`.
    """

    def __init__(self, memo: Memo, slots: Slots, chunk: int, nodes: Sequence[Node]) -> None:
        self.memo, self.slots, self.chunk, self.nodes = memo, slots, chunk, nodes
        first = slots.trunk_read
        trunk = range(first, first + chunk)  # both the slots and the positions of these tokens
        if slots.used == 0:
            slots.begin(len(memo.trunk), 0)
        self.node_slots = [node.kv if node.kv is not None else slots.take() for node in nodes]
        slot_of = dict(zip(nodes, self.node_slots, strict=True))
        self.tokens = [*memo.trunk[first : first + chunk], *(node.token for node in nodes)]
        self.positions = [*trunk, *(node.depth - 1 for node in nodes)]
        self._written = [*trunk, *self.node_slots]
        slots.positions[self._written] = self.positions
        slots.committed_mask[: trunk.stop] = 0
        slots.committed_mask[[slot for node, slot in slot_of.items() if node.committed]] = 0
        self._mask = self._build_mask(memo.head, first, slot_of)
        self._write_addresses: dict[torch.device, Address] = {}
        self._read_addresses: dict[torch.device, Address] = {}
        self._mask_tensors: dict[tuple[int | None, torch.device, int], torch.Tensor] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a layer's keys and values of these tokens, `[1, kv_heads, tokens, dim]`."""
        device = keys.device
        if device not in self._write_addresses:
            self._write_addresses[device] = self.slots.memory.address(self._written, device)
        self.slots.memory.write(layer, self._write_addresses[device], keys, values)

    def read(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the sequence, `[1, kv_heads, slots, dim]`."""
        if device not in self._read_addresses:
            self._read_addresses[device] = self.slots.memory.address(range(self._mask.shape[1]), device)
        return self.slots.memory.read(layer, self._read_addresses[device])

    def written_cells(self) -> NDArray[np.int64]:
        """Pool cells for the keys and values of these tokens, `[tokens]`."""
        return self._pooled().cells[self._written]

    def visible_cells(self) -> NDArray[np.int64]:
        """Pool cells of the slots that the mask covers, `[slots]`."""
        return self._pooled().cells[: self._mask.shape[1]]

    def mask(self, window: int | None) -> NDArray[np.float32]:
        """`[tokens, slots]`: 0 where a token attends to a slot, else -inf; limited to a sliding window if given."""
        if window is None:
            return self._mask
        distance = np.array(self.positions)[:, None] - self.slots.positions[: self._mask.shape[1]]
        return np.where(distance < window, self._mask, _MASKED)

    def mask_tensor(self, window: int | None, like: torch.Tensor, repeats: int) -> torch.Tensor:
        """The mask, repeated for heads that share keys, `[repeats * tokens, slots]`; dtype and device as of `like`."""
        key = (window, like.device, repeats)
        if key not in self._mask_tensors:
            tensor = torch.from_numpy(self.mask(window)).to(like.device, like.dtype)
            self._mask_tensors[key] = tensor.repeat(repeats, 1) if repeats > 1 else tensor
        return self._mask_tensors[key]

    def _pooled(self) -> PooledMemory:
        assert isinstance(self.slots.memory, PooledMemory)  # fixed-shape passes always use a pool
        return self.slots.memory

    def _build_mask(self, head: Node, first: int, slot_of: Mapping[Node, int]) -> NDArray[np.float32]:
        width = self.slots.mask_width
        mask = np.empty((len(self.tokens), width), np.float32)
        if self.chunk:  # causal: trunk slots are in order
            later = np.arange(width) > first + np.arange(self.chunk)[:, None]
            mask[: self.chunk] = np.where(later, _MASKED, np.float32(0))
        mask[self.chunk :] = self.slots.committed_mask[:width]
        for row, node in enumerate(self.nodes, self.chunk):
            _mask_all_but_ancestors(mask[row], node, head, slot_of)
        return mask


def _mask_all_but_ancestors(row: NDArray[np.float32], node: Node, head: Node, slot_of: Mapping[Node, int]) -> None:
    """Restrict a mask row `[slots]`, which attends to all committed tokens, to a node and its ancestors.

    `slot_of` has the slots of the nodes that this pass reads.
    """
    for fork in node.path():  # ends at the committed node where the branch starts
        if fork.committed:
            break
        row[slot_of.get(fork, fork.kv)] = 0
    for later in head.path(below=fork):
        if (slot := slot_of.get(later, later.kv)) is not None:
            row[slot] = _MASKED
