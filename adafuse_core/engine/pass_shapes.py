"""The few shapes that small passes are padded to, and the input tensors of one shape."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import SCRATCH_CELL, ZERO_CELL

_ROWS = (1, 2, 4, 8, 16, 32)
_TOKENS = (1, 2, 4, 8, 16, 32, 64)
_SLOTS = tuple(size for power in range(8, 20) for size in (2**power, 3 * 2 ** (power - 1)))  # 256, 384, 512, ...
MAX_TOKENS = 256  # rows times tokens
_MAX_CELLS, _SMALL_CELLS = 2**18, 2**13  # rows times slots: upper bound, and a size that is always allowed


@dataclass(frozen=True)
class Shape:
    """Size of a pass: rows (one per sequence), tokens per row, and slots that a row may attend to."""

    rows: int
    tokens: int
    slots: int


def smallest_shape(tokens: Sequence[int], slots: Sequence[int]) -> Shape | None:
    """The smallest shape for sequences with these numbers of tokens and of slots that they attend to.

    None if the pass is too large, or most of it would be padding.
    """
    sizes = []
    for need, offered in zip((len(tokens), max(tokens), max(slots)), (_ROWS, _TOKENS, _SLOTS), strict=True):
        index = bisect_left(offered, need)
        if index == len(offered):
            return None
        sizes.append(offered[index])
    shape = Shape(*sizes)
    max_cells = min(_MAX_CELLS, max(_SMALL_CELLS, 4 * sum(slots)))  # all rows are padded to the longest sequence
    fits = shape.rows * shape.slots <= max_cells and shape.rows * shape.tokens <= MAX_TOKENS
    return shape if fits else None


class PassInputs:
    """Input tensors of passes of one shape, at fixed addresses.

    Padding tokens repeat a real token. Their keys and values go to a scratch cell that no token attends to.

    Attributes:
        ids: Token ids, `[rows * tokens]`.
        positions: Position of each token in its sequence, `[rows * tokens]`.
        written: Pool cell for the keys and values of each token, `[rows * tokens]`.
        wanted: Indices of the tokens that are not padding, `[tokens of all sequences]`.
        visible: Pool cells that each row may attend to, `[rows, slots]`.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self._shape = shape
        size, cells = shape.rows * shape.tokens, shape.rows * shape.slots
        self._all = torch.zeros(4 * size + cells, dtype=torch.long, device=device)  # filled by one transfer
        self.ids, self.positions, self.written, self._wanted, visible = torch.split(
            self._all, [size, size, size, size, cells]
        )
        self.visible = visible.view(shape.rows, shape.slots)
        self.wanted = self._wanted[:0]

    def load(self, parts: Sequence[SequencePart], visible: Sequence[NDArray[np.int64]]) -> None:
        """Fill the tensors for a pass over these parts; `visible` are the cells that each part may attend to."""
        rows, tokens, slots = self._shape.rows, self._shape.tokens, self._shape.slots
        ids = np.full((rows, tokens), parts[0].tokens[0], np.int64)
        positions = np.full((rows, tokens), parts[0].positions[0], np.int64)
        written = np.full((rows, tokens), SCRATCH_CELL, np.int64)
        cells = np.full((rows, slots), ZERO_CELL, np.int64)
        for row, part in enumerate(parts):
            own = len(part.tokens)
            ids[row, :own], ids[row, own:] = part.tokens, part.tokens[-1]
            positions[row, :own], positions[row, own:] = part.positions, part.positions[-1]
            written[row, :own] = part.written_cells()
            cells[row, : len(visible[row])] = visible[row]
        real = np.flatnonzero(written != SCRATCH_CELL)
        wanted = np.zeros(rows * tokens, np.int64)
        wanted[: len(real)] = real
        self._all.copy_(
            torch.from_numpy(np.concatenate([ids.ravel(), positions.ravel(), written.ravel(), wanted, cells.ravel()]))
        )
        self.wanted = self._wanted[: len(real)]
