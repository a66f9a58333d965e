"""Memory for keys and values: one slot per token of a sequence.

The tensors belong to one sequence (`OwnMemory`) or to a pool of all sequences (`PooledMemory`). Both classes have the
same methods.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.forks import renew_after_fork

ZERO_CELL, SCRATCH_CELL = 0, 1  # pool cells of no sequence: one stays zero, padding tokens write to the other
_FIRST_CELLS = 4096  # size of a new pool, or an eighth of `max_kv_tokens` if that is more
_MASK_MULTIPLE = 64  # mask widths are multiples of this many slots: few sizes for the kernels, and aligned ones
_GROWTH_DIVISOR = 24  # a sequence grows by this fraction of its capacity; a larger one would leave more memory unused

Address = slice | torch.Tensor


def grown(capacity: int, used: int, max_kv_tokens: int | None) -> int:
    """The capacity for `used` slots: unchanged if they fit, otherwise larger, with spare slots.

    Spare slots do not raise the capacity above `max_kv_tokens`.
    """
    if used <= capacity:
        return capacity
    more = capacity + max(SPARE_TOKENS, capacity // _GROWTH_DIVISOR)
    return max(used, more if max_kv_tokens is None else min(more, max_kv_tokens))


class Slots:
    """The slots of one sequence, taken in any order; freed slots are reused. `grown` explains `max_kv_tokens`."""

    def __init__(self, capacity: int, memory: OwnMemory | PooledMemory, max_kv_tokens: int | None = None) -> None:
        self.capacity = capacity
        self.memory = memory
        self.used = 0  # slots from here on were never written
        self.trunk_read = 0  # trunk tokens read so far; they have the first slots, in order
        self.committed_mask = np.full(capacity, -np.inf, np.float32)  # 0 for the trunk and committed nodes
        self.positions = np.zeros(capacity, np.int64)
        self._max_kv_tokens = max_kv_tokens
        self._free: list[int] = []
        memory.grow(capacity)

    def begin(self, trunk: int, read: int) -> None:
        """Take the first slots for a trunk of this length, of which the first `read` tokens are in memory already."""
        self.extend(trunk)
        self.trunk_read = read
        self.positions[:read] = np.arange(read)
        self.committed_mask[:read] = 0

    def take(self) -> int:
        """A slot for one token."""
        if self._free:
            return heapq.heappop(self._free)
        self.extend(1)
        return self.used - 1

    def capacity_for(self, count: int) -> int:
        """The capacity after taking `count` slots."""
        return grown(self.capacity, self.used + max(0, count - len(self._free)), self._max_kv_tokens)

    def extend(self, count: int) -> None:
        """Take `count` slots after all used ones."""
        self.used += count
        if self.used > self.capacity:
            self.capacity = grown(self.capacity, self.used, self._max_kv_tokens)
            more = self.capacity - len(self.committed_mask)
            self.committed_mask = np.concatenate([self.committed_mask, np.full(more, -np.inf, np.float32)])
            self.positions = np.concatenate([self.positions, np.zeros(more, np.int64)])
            self.memory.grow(self.capacity)

    @property
    def mask_width(self) -> int:
        """The used slots, rounded up; see `_MASK_MULTIPLE`."""
        return min(self.capacity, -(-self.used // _MASK_MULTIPLE) * _MASK_MULTIPLE)

    def free(self, slot: int) -> None:
        """Return a slot."""
        heapq.heappush(self._free, slot)


class OwnMemory:
    """Tensors of a single sequence; each layer's are on the device of the layer."""

    def __init__(self) -> None:
        self._capacity = 0
        self.layers: dict[int, dict[str, torch.Tensor]] = {}  # keys, values: [1, kv_heads, capacity, dim]

    @property
    def capacity(self) -> int:
        """Slots for which there is memory."""
        return self._capacity

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots; each layer's tensors grow at its next write."""
        self._capacity = capacity

    def beginning(self, slots: Sequence[int], capacity: int, *, move: bool) -> OwnMemory:
        """Memory whose first slots have the content of these slots: a copy, or this memory itself if `move`."""
        if move:
            self._reorder(slots)
            return self
        new = OwnMemory()
        new.grow(capacity)
        for layer, tensors in self.layers.items():
            found = {kind: tensor[:, :, self.address(slots, tensor.device)] for kind, tensor in tensors.items()}
            new.layers[layer] = {kind: _enlarged(part, part, capacity, 2) for kind, part in found.items()}
        return new

    def _reorder(self, slots: Sequence[int]) -> None:
        """Move the content of these slots to the first ones."""
        if list(slots) == list(range(len(slots))):
            return
        for tensors in self.layers.values():
            for tensor in tensors.values():
                index = torch.tensor(slots, dtype=torch.long, device=tensor.device)
                tensor[:, :, : len(slots)] = tensor.index_select(2, index)

    def address(self, slots: Sequence[int], device: torch.device) -> Address:
        """Index of these slots for `write` and `read`, computed once per pass and device.

        A slice if the slots are contiguous, so that reading does not copy.
        """
        if slots and slots[-1] - slots[0] == len(slots) - 1 and all(b > a for a, b in pairwise(slots)):
            return slice(slots[0], slots[-1] + 1)
        return torch.tensor(slots, dtype=torch.long, device=device)

    def write(self, layer: int, address: Address, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a layer's keys and values, `[1, kv_heads, slots, dim]`."""
        tensors = self.layers.setdefault(layer, {})
        for kind, new in (("keys", keys), ("values", values)):
            if kind not in tensors or tensors[kind].shape[2] < self._capacity:
                # The old keys are freed before the values are copied.
                tensors[kind] = _enlarged(tensors.get(kind), new, self._capacity, 2)
            if isinstance(address, slice):
                tensors[kind][:, :, address] = new
            else:
                tensors[kind].index_copy_(2, address, new)

    def read(self, layer: int, address: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[1, kv_heads, slots, dim]`."""
        tensors = self.layers[layer]
        return tensors["keys"][:, :, address], tensors["values"][:, :, address]

    def drop(self) -> None:
        """Free all tensors after a failed pass, which may have written NaN."""
        self.layers.clear()


class Pool:
    """Keys and values of all sequences of a model, at fixed addresses as CUDA graphs need them.

    A token has one cell. All layers are on one device. Spare cells do not raise the size above `max_kv_tokens`.

    Attributes:
        moves: How often a tensor was replaced by a larger one.
    """

    def __init__(self, device: torch.device, max_kv_tokens: int | None = None) -> None:
        self.device = device
        self.moves = 0
        self._max_kv_tokens = max_kv_tokens
        self._size = SCRATCH_CELL + 1
        self._free: list[int] = []
        self._sharers: Counter[int] = Counter()  # by cell: sequences that have it, beyond the first one
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys, values: [cells, kv_heads, dim]
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock."""
        self._lock = threading.Lock()  # any thread may drop a sequence

    def take(self, count: int) -> list[int]:
        """Take cells. If too few are free, the pool doubles, or grows as far as `max_kv_tokens` allows."""
        with self._lock:
            if len(self._free) < count:
                size = max(_FIRST_CELLS, 2 * self._size)
                if self._max_kv_tokens is not None:
                    size = min(max(size, self._max_kv_tokens // 8), self._max_kv_tokens + SCRATCH_CELL + 1)
                size = max(size, self._size + count - len(self._free))
                self._free[:0] = range(size - 1, self._size - 1, -1)
                self._size = size
            return [self._free.pop() for _ in range(count)]

    def share(self, cells: Sequence[int]) -> None:
        """Give cells to one more sequence."""
        with self._lock:
            self._sharers.update(cells)

    def release(self, cells: list[int]) -> None:
        """Return cells. A cell is free when all sequences that share it have returned it."""
        with self._lock:
            shared = self._shared(cells)
            self._sharers -= Counter(shared)
            self._free += (cell for cell in reversed(cells) if cell < self._size and cell not in shared)

    def drop(self, cells: list[int]) -> None:
        """Return cells of a failed pass, which may have written NaN to those that are not shared: they are zeroed."""
        with self._lock:
            shared = self._shared(cells)
        self._zero(np.array([cell for cell in cells if cell not in shared], np.int64))
        self.release(cells)

    def _shared(self, cells: Sequence[int]) -> set[int]:
        return {cell for cell in cells if self._sharers[cell]} if self._sharers else set()

    def grow_tensors(self) -> None:
        """Enlarge the tensors to the size of the pool."""
        try:
            for layer, (keys, values) in self.layers.items():
                if len(keys) < self._size:
                    self.layers[layer] = (
                        _enlarged(keys, keys, self._size, 0),
                        _enlarged(values, values, self._size, 0),
                    )
                    self.moves += 1
        except BaseException:  # such as out of memory: only cells that every layer has can be used
            with self._lock:
                self._size = min(len(keys) for keys, _ in self.layers.values())
                self._free = [cell for cell in self._free if cell < self._size]
            raise

    def write(self, layer: int, cells: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a layer's keys and values, `[1, kv_heads, cells, dim]`."""
        new = [states[0].transpose(0, 1) for states in (keys, values)]  # [cells, kv_heads, dim]
        if layer not in self.layers:
            self.layers[layer] = _enlarged(None, new[0], self._size, 0), _enlarged(None, new[1], self._size, 0)
        for tensor, states in zip(self.layers[layer], new, strict=True):
            tensor.index_copy_(0, cells, states)

    def read(self, layer: int, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values at cells `[rows, slots]`: `[rows, kv_heads, slots, dim]`."""
        keys, values = (
            tensor.index_select(0, cells.flatten()).view(*cells.shape, *tensor.shape[1:]).transpose(1, 2)
            for tensor in self.layers[layer]
        )
        return keys, values

    def _zero(self, cells: NDArray[np.int64]) -> None:
        with torch.inference_mode():
            present = torch.from_numpy(cells[cells < self._size]).to(self.device)
            for tensors in self.layers.values():
                for tensor in tensors:
                    tensor.index_fill_(0, present, 0)


def _enlarged(old: torch.Tensor | None, like: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """A tensor of zeros in the shape of `like`, but `size` long along an axis; the old tensor is copied into it."""
    new = like.new_zeros(*like.shape[:axis], size, *like.shape[axis + 1 :])
    if old is not None:
        new.narrow(axis, 0, old.shape[axis]).copy_(old)
    return new


class PooledMemory:
    """One sequence's cells of a pool, released when this object is garbage-collected; methods as in `OwnMemory`.

    Attributes:
        cells: Cell of each slot, `[capacity]`.
    """

    def __init__(self, pool: Pool) -> None:
        self.layers = pool.layers
        self._pool = pool
        self._taken: list[int] = []
        self.cells = np.array(self._taken, np.int64)
        weakref.finalize(self, pool.release, self._taken)

    @property
    def capacity(self) -> int:
        """Slots for which there is memory."""
        return len(self._taken)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` slots."""
        self._taken += self._pool.take(capacity - len(self._taken))
        self.cells = np.array(self._taken, np.int64)

    def beginning(self, slots: Sequence[int], capacity: int, *, move: bool) -> PooledMemory:
        """Memory whose first slots share the cells of these slots. Nothing is copied, so `move` needs no other way."""
        cells = self.cells[np.array(slots, np.int64)].tolist()
        self._pool.share(cells)
        new = PooledMemory(self._pool)
        new._taken += cells
        new.cells = np.array(cells, np.int64)
        return new

    def address(self, slots: Sequence[int], device: torch.device) -> Address:
        """Cells of these slots, on the pool's device."""
        self._pool.grow_tensors()
        return torch.from_numpy(self.cells[np.array(slots)]).to(self._pool.device)

    def write(self, layer: int, address: Address, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a layer's keys and values, `[1, kv_heads, slots, dim]`."""
        assert isinstance(address, torch.Tensor)
        self._pool.write(layer, address, keys, values)

    def read(self, layer: int, address: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[1, kv_heads, slots, dim]`."""
        assert isinstance(address, torch.Tensor)
        return self._pool.read(layer, address[None])

    def drop(self) -> None:
        """Release the cells after a failed pass."""
        self._pool.drop(self._taken)
        self._taken.clear()
