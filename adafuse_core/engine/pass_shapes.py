"""The few shapes that small passes are padded to, and the inputs of a pass of one shape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import BLANK, WASTE

_ROWS = (1, 2, 4, 8, 16, 32)
_TOKENS = (1, 2, 4, 8, 16, 32, 64)
_SLOTS = tuple(size for power in range(8, 20) for size in (2**power, 3 * 2 ** (power - 1)))  # 256, 384, 512, ...
MOST_TOKENS = 256  # rows times tokens
_MOST_PLACES, _FEW_PLACES = 2**18, 2**13  # rows times slots: at most, and always allowed


@dataclass(frozen=True)
class Shape:
    """Of a pass: its rows (one for each sequence), the tokens of a row, and the slots that a row may attend to."""

    rows: int
    tokens: int
    slots: int


def smallest_shape(tokens: Sequence[int], slots: Sequence[int]) -> Shape | None:
    """The smallest shape that holds a pass; None if the pass is too large, or padding would be most of it.

    Args:
        tokens: Number of tokens of each sequence.
        slots: Number of slots that each sequence attends to.
    """
    sizes = []
    for need, offered in zip((len(tokens), max(tokens), max(slots)), (_ROWS, _TOKENS, _SLOTS), strict=True):
        index = bisect_left(offered, need)
        if index == len(offered):
            return None
        sizes.append(offered[index])
    shape = Shape(*sizes)
    most_places = min(_MOST_PLACES, max(_FEW_PLACES, 4 * sum(slots)))  # one long sequence pads all others
    fits = shape.rows * shape.slots <= most_places and shape.rows * shape.tokens <= MOST_TOKENS
    return shape if fits else None


class PassInputs:
    """What the passes of one shape read, in tensors that stay where they are.

    Padding repeats tokens, writes its keys and values to a place that nobody reads, and attends to nothing of its own.

    Args:
        shape: Of the passes.
        device: Where the tensors lie.

    Attributes:
        ids: `[rows * tokens]`.
        positions: Of each token in its sequence, `[rows * tokens]`.
        written: Places in the pool for the keys of each token, `[rows * tokens]`.
        wanted: Indices of the tokens that are no padding, `[tokens of all sequences]`.
        visible: Places in the pool that each row may attend to, `[rows, slots]`.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self._shape = shape
        size, places = shape.rows * shape.tokens, shape.rows * shape.slots
        self._all = torch.zeros(4 * size + places, dtype=torch.long, device=device)  # filled by one transfer
        self.ids, self.positions, self.written, self._wanted, visible = torch.split(
            self._all, [size, size, size, size, places]
        )
        self.visible = visible.view(shape.rows, shape.slots)
        self.wanted = self._wanted[:0]

    def load(self, parts: Sequence[SequencePart], visible: Sequence[NDArray[np.int64]]) -> None:
        """Fill the tensors for a pass over these parts, with the places that each of them may attend to."""
        rows, tokens, slots = self._shape.rows, self._shape.tokens, self._shape.slots
        ids = np.full((rows, tokens), parts[0].tokens[0], np.int64)
        positions = np.full((rows, tokens), parts[0].positions[0], np.int64)
        written = np.full((rows, tokens), WASTE, np.int64)
        places = np.full((rows, slots), BLANK, np.int64)
        for row, part in enumerate(parts):
            own = len(part.tokens)
            ids[row, :own], ids[row, own:] = part.tokens, part.tokens[-1]
            positions[row, :own], positions[row, own:] = part.positions, part.positions[-1]
            written[row, :own] = part.written()
            places[row, : len(visible[row])] = visible[row]
        wanted = np.zeros(rows * tokens, np.int64)
        real = np.flatnonzero(written != WASTE)
        wanted[: len(real)] = real
        self._all.copy_(
            torch.from_numpy(np.concatenate([ids.ravel(), positions.ravel(), written.ravel(), wanted, places.ravel()]))
        )
        self.wanted = self._wanted[: len(real)]
