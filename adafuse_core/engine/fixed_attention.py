"""Tree attention of a pass in a fixed shape: each row attends to its sequence's cells of the pool."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.attention import ScoreOptions, TreePass, attend
from adafuse_core.engine.pass_shapes import PassInputs, Shape
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import Pool


class FixedAttention(TreePass):
    """Each layer copies keys and values of all rows out of the pool, then attends under masks built before the pass."""

    def __init__(self, pool: Pool, shape: Shape) -> None:
        super().__init__()
        self.inputs = PassInputs(shape, pool.device)
        self._pool = pool
        self._shape = shape
        self._parts: Sequence[SequencePart] = ()
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}  # [rows, 1, tokens, slots]
        self._repeated_masks: dict[tuple[int | None, torch.dtype, int], torch.Tensor] = {}  # of this run

    @contextmanager
    def loaded(self, parts: Sequence[SequencePart], visible: Sequence[NDArray[np.int64]]) -> Iterator[None]:
        """Load inputs and masks for a pass over these parts, see `PassInputs.load`; drop the parts after the pass."""
        self.inputs.load(parts, visible)
        self._parts = parts
        for (window, _), mask in self._masks.items():
            mask.copy_(self._mask(window))
        try:
            yield
        finally:
            self._parts = ()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._repeated_masks.clear()

    def attend(self, query: torch.Tensor, window: int | None, options: ScoreOptions) -> torch.Tensor:
        """`[1, heads, rows * tokens, dim]` -> `[1, rows * tokens, heads, dim]`."""
        keys, values = self._pool.read(self._layer, self.inputs.visible)
        heads, dim = query.shape[1], query.shape[3]
        rows = query.view(heads, self._shape.rows, self._shape.tokens, dim).transpose(0, 1)
        key = (window, query.dtype)
        if key not in self._masks:  # only in the run before the recorded one
            self._masks[key] = self._mask(window).to(query.device, query.dtype)

        def mask(repeats: int) -> torch.Tensor:
            if (*key, repeats) not in self._repeated_masks:
                self._repeated_masks[*key, repeats] = self._masks[key].repeat(1, 1, repeats, 1)
            return self._repeated_masks[*key, repeats]

        return attend(rows, keys, values, mask, options).transpose(1, 2).flatten(0, 1)[None]

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pool.write(layer, self.inputs.written, keys, values)

    def _mask(self, window: int | None) -> torch.Tensor:
        """`[rows, 1, tokens, slots]`: 0 where a token attends to a slot, else -inf."""
        rows, tokens, slots = self._shape.rows, self._shape.tokens, self._shape.slots
        mask = np.full((rows, 1, tokens, slots), -math.inf, np.float32)
        for row, part in enumerate(self._parts):
            own = part.mask(window)  # [tokens of the part, its slots]
            mask[row, 0, : len(own), : own.shape[1]] = own
            mask[row, 0, len(own) :, : own.shape[1]] = own[-1]
        mask[len(self._parts) :, 0, :, 0] = 0  # unused rows attend to one zero cell; attending to nothing gives NaN
        return torch.from_numpy(mask)
