"""Where keys and values lie: one slot per token of a sequence, in tensors of its own or in a pool of all sequences.

Both kinds of memory have the same methods.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.forks import renew_after_fork

BLANK, WASTE = 0, 1  # places of a pool that no sequence gets: one stays zero, padding writes to the other
_FIRST_PLACES = 4096  # or an eighth of the most
_EVEN = 64  # slots: masks are a multiple of this wide, so that kernels meet few sizes, and aligned ones
_SHARE = 24  # a sequence grows by this part of what it holds: a larger one would leave more memory unused

Address = slice | torch.Tensor


def grown(capacity: int, used: int, most: int | None) -> int:
    """The capacity for `used` slots: the old one if they fit, else a larger one that serves some more tokens.

    Args:
        capacity: The old one.
        used: Slots that are needed.
        most: Bound on slots that are not needed yet.
    """
    if used <= capacity:
        return capacity
    more = capacity + max(SPARE_TOKENS, capacity // _SHARE)
    return max(used, more if most is None else min(more, most))


class Slots:
    """The slots of one sequence, used in any order; freed ones are used again.

    Args:
        capacity: Slots to begin with.
        memory: Keeps their keys and values.
        most: See `grown`.
    """

    def __init__(self, capacity: int, memory: OwnMemory | RentedMemory, most: int | None = None) -> None:
        self.capacity = capacity
        self._most = most
        self.memory = memory
        self.used = 0  # from this slot on, none was ever written
        self.trunk_read = 0  # tokens of the trunk that were read; they have the first slots, in order
        self.committed_mask = np.full(capacity, -np.inf, np.float32)  # 0: trunk and committed nodes
        self.positions = np.zeros(capacity, np.int64)
        self._free: list[int] = []
        memory.grow(capacity)

    def take(self) -> int:
        """A slot for one token."""
        if self._free:
            return heapq.heappop(self._free)
        self.extend(1)
        return self.used - 1

    def capacity_for(self, count: int) -> int:
        """The capacity after taking this many slots."""
        return grown(self.capacity, self.used + max(0, count - len(self._free)), self._most)

    def extend(self, count: int) -> None:
        """Take slots behind all others."""
        self.used += count
        if self.used > self.capacity:
            self.capacity = grown(self.capacity, self.used, self._most)
            more = self.capacity - len(self.committed_mask)
            self.committed_mask = np.concatenate([self.committed_mask, np.full(more, -np.inf, np.float32)])
            self.positions = np.concatenate([self.positions, np.zeros(more, np.int64)])
            self.memory.grow(self.capacity)

    @property
    def visible(self) -> int:
        """Width of masks: the slots in use, and a few more; see `_EVEN`."""
        return min(self.capacity, -(-self.used // _EVEN) * _EVEN)

    def free(self, slot: int) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, slot)


class OwnMemory:
    """Tensors of one sequence alone, on whatever device each layer runs."""

    def __init__(self) -> None:
        self._capacity = 0
        self._layers: dict[int, dict[str, torch.Tensor]] = {}  # keys, values: [1, kv_heads, capacity, dim]

    def grow(self, capacity: int) -> None:
        """Have room for this many slots, in each layer from its next write on."""
        self._capacity = capacity

    def address(self, slots: Sequence[int], device: torch.device) -> Address:
        """What `write` and `read` take for these slots on a device: found once per pass, used once per layer.

        A slice where the slots are neighbours, so that reading copies nothing.
        """
        if slots and slots[-1] - slots[0] == len(slots) - 1 and all(b > a for a, b in pairwise(slots)):
            return slice(slots[0], slots[-1] + 1)
        return torch.tensor(slots, dtype=torch.long, device=device)

    def write(self, layer: int, address: Address, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed, `[1, kv_heads, slots, dim]`."""
        held = self._layers.setdefault(layer, {})
        for kind, new in (("keys", keys), ("values", values)):
            if kind not in held or held[kind].shape[2] < self._capacity:
                held[kind] = self._enlarged(held.get(kind), new)  # the old keys are gone before values are copied
            store = held[kind]
            if isinstance(address, slice):
                store[:, :, address] = new
            else:
                store.index_copy_(2, address, new)

    def read(self, layer: int, address: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[1, kv_heads, slots, dim]`."""
        held = self._layers[layer]
        return held["keys"][:, :, address], held["values"][:, :, address]

    def layers(self) -> int:
        """Number of layers that stored keys."""
        return len(self._layers)

    def drop(self) -> None:
        """Give everything up after a failed pass, which may have written NaN."""
        self._layers.clear()

    def _enlarged(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        new = like.new_zeros(1, like.shape[1], self._capacity, like.shape[3])
        if old is not None:
            new[:, :, : old.shape[2]] = old
        return new


class Pool:
    """Keys and values of all sequences of a model, at addresses that stay: what recorded passes need.

    Args:
        device: The one that all layers run on.
        most: Bound on places that are not needed yet.

    Attributes:
        moved: How often its tensors were replaced by larger ones.
    """

    def __init__(self, device: torch.device, most: int | None = None) -> None:
        self.device = device
        self.moved = 0
        self._most = most
        self._size = WASTE + 1
        self._free: list[int] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys, values: [places, kv_heads, dim]
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Make a new lock."""
        self._lock = threading.Lock()  # sequences are forgotten by any thread

    def rent(self) -> RentedMemory:
        """Memory for one sequence; its places come back when it is forgotten."""
        return RentedMemory(self)

    def take(self, count: int) -> list[int]:
        """Take places; when there are not enough, the pool becomes twice as large."""
        with self._lock:
            if len(self._free) < count:
                size = max(_FIRST_PLACES, 2 * self._size)
                if self._most is not None:
                    size = min(max(size, self._most // 8), self._most + WASTE + 1)
                size = max(size, self._size + count - len(self._free))
                self._free[:0] = range(size - 1, self._size - 1, -1)
                self._size = size
            return [self._free.pop() for _ in range(count)]

    def give_back(self, places: list[int]) -> None:
        """Make places free."""
        with self._lock:
            self._free += (place for place in reversed(places) if place < self._size)

    def fit(self) -> None:
        """Enlarge the tensors that lack places which were given out."""
        try:
            for layer, (keys, values) in self._layers.items():
                if len(keys) < self._size:
                    self._layers[layer] = self._enlarged(keys, keys), self._enlarged(values, values)
                    self.moved += 1
        except BaseException:  # out of memory, say: only places that every layer has can be given out
            with self._lock:
                self._size = min(len(keys) for keys, _ in self._layers.values())
                self._free = [place for place in self._free if place < self._size]
            raise

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed, `[1, kv_heads, places, dim]`."""
        new = [states[0].transpose(0, 1) for states in (keys, values)]  # [places, kv_heads, dim]
        if layer not in self._layers:
            self._layers[layer] = self._enlarged(None, new[0]), self._enlarged(None, new[1])
        for store, states in zip(self._layers[layer], new, strict=True):
            store.index_copy_(0, places, states)

    def read(self, layer: int, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of keys and values at `[rows, slots]` places: `[rows, kv_heads, slots, dim]`."""
        keys, values = (
            store.index_select(0, places.flatten()).view(*places.shape, *store.shape[1:]).transpose(1, 2)
            for store in self._layers[layer]
        )
        return keys, values

    def layers(self) -> int:
        """Number of layers that stored keys."""
        return len(self._layers)

    def wipe(self, places: NDArray[np.int64]) -> None:
        """Write zeros."""
        with torch.inference_mode():
            present = torch.from_numpy(places[places < self._size]).to(self.device)
            for stores in self._layers.values():
                for store in stores:
                    store.index_fill_(0, present, 0)

    def _enlarged(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        new = like.new_zeros(self._size, *like.shape[1:])
        if old is not None:
            new[: len(old)] = old
        return new


class RentedMemory:
    """One sequence's places in a pool; see `OwnMemory` for the methods.

    Attributes:
        places: Of each slot, `[capacity]`.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._taken: list[int] = []
        self.places = np.array(self._taken, np.int64)
        weakref.finalize(self, pool.give_back, self._taken)

    def grow(self, capacity: int) -> None:
        """Have room for this many slots."""
        self._taken += self._pool.take(capacity - len(self._taken))
        self.places = np.array(self._taken, np.int64)

    def address(self, slots: Sequence[int], device: torch.device) -> Address:
        """Places of slots, on the pool's device."""
        self._pool.fit()
        return torch.from_numpy(self.places[np.array(slots)]).to(self._pool.device)

    def write(self, layer: int, address: Address, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed, `[1, kv_heads, slots, dim]`."""
        assert isinstance(address, torch.Tensor)
        self._pool.write(layer, address, keys, values)

    def read(self, layer: int, address: Address) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, `[1, kv_heads, slots, dim]`."""
        assert isinstance(address, torch.Tensor)
        return self._pool.read(layer, address[None])

    def layers(self) -> int:
        """Number of layers that stored keys."""
        return self._pool.layers()

    def drop(self) -> None:
        """Give the places back after a failed pass, filled with zeros, since it may have written NaN."""
        self._pool.wipe(self.places)
        self._pool.give_back(self._taken)
        self._taken.clear()
