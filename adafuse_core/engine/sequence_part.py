"""What one pass reads of one sequence, and what each of these tokens attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.slots import Address, RentedMemory, Slots

_NEVER = np.float32(-np.inf)


class SequencePart:
    """A chunk of a sequence's trunk, then nodes, with a slot for each token.

    Args:
        memo: The sequence's tree.
        slots: The sequence's memory; new tokens take slots of it.
        chunk: Tokens of the trunk to read, after those that were read before.
        nodes: Nodes to read, parents first; none unless this chunk is the last one.

    Attributes:
        tokens: Ids, `[tokens]`.
        positions: Of the tokens in the sequence, `[tokens]`.
        node_slots: The slots of the nodes.
    """

    def __init__(self, memo: Memo, slots: Slots, chunk: int, nodes: Sequence[Node]) -> None:
        self.slots, self.chunk, self.nodes = slots, chunk, nodes
        first = slots.trunk_read
        trunk = range(first, first + chunk)  # slots of the trunk, which are its positions too
        if first == 0 and chunk:
            slots.extend(len(memo.trunk))
        self.node_slots = [node.kv if node.kv is not None else slots.take() for node in nodes]
        self.tokens = [*memo.trunk[first : first + chunk], *(node.token for node in nodes)]
        self.positions = [*trunk, *(node.depth - 1 for node in nodes)]
        self._written = [*trunk, *self.node_slots]
        slots.positions[self._written] = self.positions
        slots.committed_mask[: trunk.stop] = 0
        slots.committed_mask[[slot for node, slot in self._placed() if node.committed]] = 0
        self._mask = self._laid_out(memo, first)
        self._to_write: dict[torch.device, Address] = {}
        self._to_read: dict[torch.device, Address] = {}
        self._masks: dict[tuple[int | None, torch.device, int], torch.Tensor] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed for these tokens, `[1, kv_heads, tokens, dim]`."""
        device = keys.device
        if device not in self._to_write:
            self._to_write[device] = self.slots.memory.address(self._written, device)
        self.slots.memory.write(layer, self._to_write[device], keys, values)

    def read(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the sequence, `[1, kv_heads, slots, dim]`."""
        if device not in self._to_read:
            self._to_read[device] = self.slots.memory.address(range(self._mask.shape[1]), device)
        return self.slots.memory.read(layer, self._to_read[device])

    def written(self) -> NDArray[np.int64]:
        """Places in the pool for the tokens' own keys, `[tokens]`."""
        return self._rented().places[self._written]

    def visible(self) -> NDArray[np.int64]:
        """Places in the pool of everything that the sequence holds, `[slots]`."""
        return self._rented().places[: self._mask.shape[1]]

    def mask(self, window: int | None) -> NDArray[np.float32]:
        """`[tokens, slots]`: 0 where a token attends to a slot, else -inf; within a sliding window if there is one."""
        if window is None:
            return self._mask
        distance = np.array(self.positions)[:, None] - self.slots.positions[: self._mask.shape[1]]
        return np.where(distance < window, self._mask, _NEVER)

    def mask_tensor(self, window: int | None, like: torch.Tensor, repeats: int) -> torch.Tensor:
        """The mask repeated for heads that share keys, in the dtype of a tensor: `[repeats * tokens, slots]`."""
        key = (window, like.device, repeats)
        if key not in self._masks:
            tensor = torch.from_numpy(self.mask(window)).to(like.device, like.dtype)
            self._masks[key] = tensor.repeat(repeats, 1) if repeats > 1 else tensor
        return self._masks[key]

    def _placed(self) -> list[tuple[Node, int]]:
        return list(zip(self.nodes, self.node_slots, strict=True))

    def _rented(self) -> RentedMemory:
        assert isinstance(self.slots.memory, RentedMemory)  # passes in fixed shapes have a pool
        return self.slots.memory

    def _laid_out(self, memo: Memo, first: int) -> NDArray[np.float32]:
        visible = self.slots.visible
        mask = np.empty((len(self.tokens), visible), np.float32)
        if self.chunk:  # causal: slots of the trunk are in order
            later = np.arange(visible) > first + np.arange(self.chunk)[:, None]
            mask[: self.chunk] = np.where(later, _NEVER, np.float32(0))
        mask[self.chunk :] = self.slots.committed_mask[:visible]
        slot_of = dict(self._placed())
        for row, node in enumerate(self.nodes, self.chunk):
            _turn_to_branch(mask[row], node, memo.head, slot_of)
        return mask


def _turn_to_branch(row: NDArray[np.float32], node: Node, head: Node, slot_of: Mapping[Node, int]) -> None:
    """Make a row that attends to all committed tokens attend to a node's own ancestors instead.

    Args:
        row: `[slots]`, changed in place.
        node: The token that attends.
        head: The last committed node.
        slot_of: Slots of nodes that this pass reads.
    """
    for fork in node.path():  # up to where the node's branch leaves the committed path
        if fork.committed:
            break
        row[slot_of.get(fork, fork.kv)] = 0
    for later in head.path(below=fork):
        if (slot := slot_of.get(later, later.kv)) is not None:
            row[slot] = _NEVER
