"""KV memory as a tree: prompt and answer are stored once, and so is every token tried beyond them.

All that is asked of a sequence is read in one pass with a mask of ancestors and explicit positions. A branch copies
nothing. Which models can be read so is found out by `selftest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.attention import SegmentPass
from adafuse_core.engine.distributions import distributions
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
from adafuse_core.engine.read_plan import nodes_to_read
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.slots import Address, OwnMemory, RentedMemory, Slots, grown
from adafuse_core.engine.steps import Steps
from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.text.ids import Ids


class Branches:
    """What one pass reads of one sequence: a chunk of the trunk, then nodes."""

    def __init__(self, memo: Memo, slots: Slots, start: int, chunk: int, nodes: Sequence[Node]) -> None:
        self.slots = slots
        first = slots.trunk_read
        self.chunk, self.nodes = chunk, nodes
        self.length = chunk + len(nodes)
        self.stop = start + self.length  # in the flat row
        if first == 0 and chunk:
            slots.extend(len(memo.trunk))
        self.places = [node.kv if node.kv is not None else slots.take() for node in nodes]
        self.tokens = [*memo.trunk[first : first + chunk], *(node.token for node in nodes)]
        self.positions = [*range(first, first + chunk), *(node.depth - 1 for node in nodes)]
        self._written = [*range(first, first + chunk), *self.places]
        slots.bias[: first + chunk] = 0
        for node, place in zip(nodes, self.places, strict=True):
            if node.committed:
                slots.bias[place] = 0
        slots.positions[self._written] = self.positions
        self._bias = self._see(memo, first)
        self._to_write: dict[torch.device, Address] = {}
        self._to_read: dict[torch.device, Address] = {}
        self._biases: dict[tuple[int | None, torch.device, int], torch.Tensor] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed for these tokens."""
        device = keys.device
        if device not in self._to_write:
            self._to_write[device] = self.slots.memory.address(self._written, device)
        self.slots.memory.write(layer, self._to_write[device], keys, values)

    def read(self, layer: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the sequence."""
        if device not in self._to_read:
            self._to_read[device] = self.slots.memory.address(range(self._bias.shape[1]), device)
        return self.slots.memory.read(layer, self._to_read[device])

    def bias(self, window: int | None, like: torch.Tensor, repeats: int) -> torch.Tensor:
        """`[repeats * tokens, slots]`: 0 where a token sees a slot, else -inf."""
        key = (window, like.device, repeats)
        if key not in self._biases:
            tensor = torch.from_numpy(self.sight(window)).to(like.device, like.dtype)
            self._biases[key] = tensor.repeat(repeats, 1) if repeats > 1 else tensor
        return self._biases[key]

    def written(self) -> NDArray[np.int64]:
        """Places in the pool of the tokens' own keys, `[tokens]`."""
        return self._rented().places[self._written]

    def visible(self) -> NDArray[np.int64]:
        """Places in the pool of all that the sequence holds, `[slots]`."""
        return self._rented().places[: self._bias.shape[1]]

    def sight(self, window: int | None) -> NDArray[np.float32]:
        """`[tokens, slots]`: 0 where a token sees a slot, else -inf."""
        if window is None:
            return self._bias
        distance = np.array(self.positions)[:, None] - self.slots.positions[: self._bias.shape[1]]
        return np.where(distance < window, self._bias, np.float32(-np.inf))

    def _rented(self) -> RentedMemory:
        assert isinstance(self.slots.memory, RentedMemory)
        return self.slots.memory

    def _see(self, memo: Memo, first: int) -> NDArray[np.float32]:
        """`[tokens, slots]`: 0 where a token sees a slot, else -inf."""
        visible = self.slots.visible
        bias = np.empty((self.length, visible), np.float32)
        if self.chunk:  # slots of the trunk are in order
            later = np.arange(visible) > first + np.arange(self.chunk)[:, None]
            bias[: self.chunk] = np.where(later, np.float32(-np.inf), np.float32(0))
        if not self.nodes:
            return bias
        bias[self.chunk :] = self.slots.bias[:visible]
        place_of = dict(zip(self.nodes, self.places, strict=True))
        for row, node in enumerate(self.nodes, self.chunk):
            for ancestor in node.path():
                if ancestor.committed:
                    break
                bias[row, place_of.get(ancestor, ancestor.kv)] = 0
            for later_node in memo.head.path():
                if later_node is ancestor:
                    break
                if (place := place_of.get(later_node, later_node.kv)) is not None:
                    bias[row, place] = -np.inf
        return bias


class TreeStore:
    """Reads asks of many sequences in one pass.

    Args:
        model: One that `selftest.py` found to read trees as it reads plain text.
        chunk: Most tokens of prompts that one pass reads.
        most: Tokens that the memory of one sequence is meant not to exceed.
        steps: Runs passes that are small enough for it; None if all shall be as large as what is asked.
    """

    kind = "tree"

    def __init__(self, model: Model, *, chunk: int, most: int | None = None, steps: Steps | None = None) -> None:
        self._model = model
        self._chunk = chunk
        self._most = most
        self._steps = steps

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """One pass, which answers the asks or brings them further; see `Store.read`."""
        taken: list[Memo] = []
        try:
            self._run(list(self._parts(requests, taken)))
        except BaseException:
            for memo in taken:
                slots: Slots | None = memo.kv
                memo.restart()
                if slots is not None:
                    slots.memory.drop()
            raise

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one; what led elsewhere is dropped."""
        dropped = memo.commit(context)
        slots = memo.kv
        if slots is None:
            return
        for node in dropped:
            if node.kv is not None:
                slots.free(node.kv)
        slots.bias[slots.trunk_read :] = -np.inf
        slots.bias[[node.kv for node in memo.head.path() if node.kv is not None]] = 0

    def tokens_held(self, memo: Memo) -> int:
        """Tokens whose keys and values are in memory."""
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

    def _parts(self, requests: Sequence[ReadRequest], taken: list[Memo]) -> Iterator[Branches]:
        """What this pass reads; notes whose memos are touched."""
        left, start = self._chunk, 0
        for request in requests:
            ends = request.ends()
            held: Slots | None = request.memo.kv
            rest = len(request.memo.trunk) - (0 if held is None else held.trunk_read)
            if rest and not left:
                continue
            chunk = min(rest, left)
            nodes = nodes_to_read(ends) if chunk == rest else []
            if chunk or nodes:
                taken.append(request.memo)
                part = Branches(request.memo, self._slots(request.memo), start, chunk, nodes)
                start, left = part.stop, left - chunk
                yield part

    def _slots(self, memo: Memo) -> Slots:
        if memo.kv is None:
            memory = OwnMemory() if self._steps is None else self._steps.pool.rent()
            memo.kv = Slots(self._first_capacity(memo), memory, self._most)
        slots: Slots = memo.kv
        return slots

    def _first_capacity(self, memo: Memo) -> int:
        return grown(len(memo.ids), len(memo.ids) + SPARE_TOKENS, self._most)

    def _run(self, parts: Sequence[Branches]) -> None:
        if not parts:
            return
        logits = None
        if self._steps is not None and not any(part.chunk for part in parts):
            logits = self._steps.read(parts)
        if logits is None:
            logits = self._logits(parts)
        for part in parts:
            part.slots.trunk_read += part.chunk
        nodes = [node for part in parts for node in part.nodes]
        places = [place for part in parts for place in part.places]
        if nodes:
            for node, place, row in zip(nodes, places, distributions(logits), strict=True):
                node.kv, node.distribution = place, row

    def _logits(self, parts: Sequence[Branches]) -> torch.Tensor:
        """After each node, `[nodes, vocab]`, in a pass as large as what is read."""
        tokens = [token for part in parts for token in part.tokens]
        positions = [position for part in parts for position in part.positions]
        keep = [index for part in parts for index in range(part.stop - len(part.nodes), part.stop)]
        with SegmentPass(parts) as tree:
            return self._model.read(tokens, positions, tree, keep or [len(tokens) - 1])
