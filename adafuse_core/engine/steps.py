"""Passes in fixed shapes, recorded once and replayed: what keeps a GPU from waiting for Python between its kernels.

A pass that reads a few tokens of a few sequences is filled up to the next larger shape. Its inputs lie in tensors that
stay where they are, keys and values in a pool, so that the second pass of a shape can be recorded by `graphs.py` and
later ones are a replay. What fills a shape up is written where nobody reads.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adafuse_core.engine.attention import TreePass, attend
from adafuse_core.engine.forward import Model
from adafuse_core.engine.slots import BLANK, WASTE, Pool

logger = logging.getLogger(__name__)

Run = Callable[[], None]
Recorder = Callable[[Run], Run]

_ROWS = (1, 2, 4, 8, 16, 32)
_TOKENS = (1, 2, 4, 8, 16, 32, 64)
_SLOTS = tuple(size for power in range(8, 20) for size in (2**power, 3 * 2 ** (power - 1)))  # 256, 384, 512, ...
_MOST = 256  # rows times tokens
_MOST_PLACES, _FEW_PLACES = 2**18, 2**13  # rows times slots: at most, and whatever the lengths
_KEPT = 64  # shapes


class Part(Protocol):
    """What a pass reads of one sequence."""

    tokens: list[int]
    positions: list[int]

    def written(self) -> NDArray[np.int64]:
        """Places in the pool of the tokens' own keys, `[tokens]`."""

    def visible(self) -> NDArray[np.int64]:
        """Places in the pool of all that the sequence holds."""

    def sight(self, window: int | None) -> NDArray[np.float32]:
        """`[tokens, len(visible())]`: 0 where a token sees a place, else -inf."""


@dataclass(frozen=True)
class Shape:
    """Of a pass: sequences, tokens of each, and places that each may see."""

    rows: int
    tokens: int
    slots: int


class Steps:
    """Runs small passes over sequences in a pool.

    Args:
        model: On one device.
        pool: Of all its sequences.
        record: See `graphs.py`.
    """

    def __init__(self, model: Model, pool: Pool, record: Recorder) -> None:
        self.pool = pool
        self._model = model
        self._record = record
        self._steps: dict[Shape, _Step] = {}  # the latest used last
        self._moved = 0
        self._logits: torch.Tensor | None = None  # [_MOST, vocab], of all recorded passes
        self.problem: Exception | None = None  # why recording was given up

    def read(self, parts: Sequence[Part]) -> torch.Tensor | None:
        """One pass.

        Returns:
            The logits after each token, `[tokens of all parts, vocab]`; None if the pass is too large for a step, or
            steps can't be recorded.
        """
        if self.problem is not None:
            return None
        visible = [part.visible() for part in parts]
        shape = _shape(parts, visible)
        if shape is None:
            return None
        self.pool.fit()
        if self._moved != self.pool.moved:  # what was recorded would read where the keys lay before
            self._steps.clear()
            self._moved = self.pool.moved
        step = self._steps.pop(shape, None) or _Step(shape, self._model, self.pool)
        self._steps[shape] = step
        while len(self._steps) > _KEPT:
            del self._steps[next(iter(self._steps))]
        with self._model.passing(shape.rows * shape.tokens):
            with step.loaded(parts, visible):
                if step.runs == 1:  # a shape that comes once is not worth a recording
                    step.replay = self._recorded(step)
                if step.replay is None:
                    logits = step.run()
                else:
                    step.replay()
                    assert self._logits is not None
                    logits = self._logits
            step.runs += 1
            return logits.index_select(0, step.wanted(parts))

    def _recorded(self, step: _Step) -> Run | None:
        def run() -> None:
            logits = step.run()
            if self._logits is None:
                self._logits = logits.new_zeros(_MOST, logits.shape[1])
            self._logits[: len(logits)] = logits

        try:
            if self._logits is None:
                run()
            return self._record(run)
        except torch.OutOfMemoryError as error:
            logger.warning("no memory to record a pass of %s: %s", step.shape, error)
        except Exception as error:  # whatever a model does that can't be recorded
            logger.warning("passes are no longer recorded: %s: %s", type(error).__name__, error)
            self.problem = error.with_traceback(None)  # which would hold what it was about
            self._steps.clear()
            self._logits = None
        return None


class _Step:
    """The pass of one shape, and the tensors that it reads."""

    def __init__(self, shape: Shape, model: Model, pool: Pool) -> None:
        self.runs = 0
        self.replay: Run | None = None
        self.shape = shape
        self._model = model
        size, places = shape.rows * shape.tokens, shape.rows * shape.slots
        self._numbers = torch.zeros(4 * size + places, dtype=torch.long, device=pool.device)
        self._ids, self._positions, written, self._wanted, visible = torch.split(
            self._numbers, [size, size, size, size, places]
        )
        self._pass = _FixedPass(pool, shape, written, visible.view(shape.rows, shape.slots))

    @contextmanager
    def loaded(self, parts: Sequence[Part], visible: Sequence[NDArray[np.int64]]) -> Iterator[None]:
        """Around a run: what it reads is laid out, and not held any longer."""
        rows, tokens, slots = self.shape.rows, self.shape.tokens, self.shape.slots
        numbers = np.full((3, rows, tokens), WASTE, np.int64)
        wanted = np.zeros(rows * tokens, np.int64)
        count = 0
        places = np.full((rows, slots), BLANK, np.int64)
        for row, part in enumerate(parts):
            own = len(part.tokens)
            numbers[0, row, :own], numbers[0, row, own:] = part.tokens, part.tokens[-1]
            numbers[1, row, :own], numbers[1, row, own:] = part.positions, part.positions[-1]
            numbers[2, row, :own] = part.written()
            wanted[count : count + own] = np.arange(own) + row * tokens
            count += own
            places[row, : len(visible[row])] = visible[row]
        numbers[:2, len(parts) :] = numbers[:2, :1, :1]
        self._numbers.copy_(torch.from_numpy(np.concatenate([numbers.ravel(), wanted, places.ravel()])))
        self._pass.load(parts)
        try:
            yield
        finally:
            self._pass.unload()

    def wanted(self, parts: Sequence[Part]) -> torch.Tensor:
        """Where the tokens of the parts are among those of the step."""
        return self._wanted[: sum(len(part.tokens) for part in parts)]

    def run(self) -> torch.Tensor:
        """The logits after each token, those that fill up included: `[rows * tokens, vocab]`."""
        with self._pass as tree:
            return self._model.flat(self._ids[None], self._positions[None], tree)


class _FixedPass(TreePass):
    """Attention of a step: each row to the places of its sequence, copied from the pool layer by layer."""

    def __init__(self, pool: Pool, shape: Shape, written: torch.Tensor, visible: torch.Tensor) -> None:
        super().__init__()
        self._pool = pool
        self._shape = shape
        self._written = written
        self._visible = visible
        self._parts: Sequence[Part] = ()
        self._sights: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}  # [rows, 1, tokens, slots]
        self._repeated: dict[tuple[int | None, torch.dtype, int], torch.Tensor] = {}  # of this run

    def load(self, parts: Sequence[Part]) -> None:
        """Lay out what the tokens see."""
        self._parts = parts
        for (window, _), sight in self._sights.items():
            sight.copy_(self._sight(window))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._repeated.clear()

    def unload(self) -> None:
        """Let go of the sequences."""
        self._parts = ()

    def attend(
        self,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """`[1, heads, rows * tokens, dim]` -> `[1, rows * tokens, heads, dim]`."""
        keys, values = self._pool.read(self._layer, self._visible)
        heads, dim = query.shape[1], query.shape[3]
        own = query.view(heads, self._shape.rows, self._shape.tokens, dim).transpose(0, 1)
        key = (window, query.dtype)
        if key not in self._sights:  # never while it is recorded, since a run comes before
            self._sights[key] = self._sight(window).to(query.device, query.dtype)

        def bias(repeats: int) -> torch.Tensor:
            if (*key, repeats) not in self._repeated:
                self._repeated[*key, repeats] = self._sights[key].repeat(1, 1, repeats, 1)
            return self._repeated[*key, repeats]

        seen = attend(own, keys, values, bias, scaling, softcap, sinks)
        return seen.transpose(1, 2).flatten(0, 1)[None]

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pool.write(layer, self._written, keys, values)

    def _sight(self, window: int | None) -> torch.Tensor:
        rows, tokens, slots = self._shape.rows, self._shape.tokens, self._shape.slots
        sight = np.full((rows, 1, tokens, slots), -math.inf, np.float32)
        for row, part in enumerate(self._parts):
            seen = part.sight(window)  # [tokens of the part, its places]
            sight[row, 0, : len(seen), : seen.shape[1]] = seen
            sight[row, 0, len(seen) :, : seen.shape[1]] = seen[-1]
        sight[len(self._parts) :, 0, :, 0] = 0  # rows of no sequence see a blank, lest they compute no numbers
        return torch.from_numpy(sight)


def _shape(parts: Sequence[Part], visible: Sequence[NDArray[np.int64]]) -> Shape | None:
    """The smallest shape that holds the parts."""
    needs = (len(parts), max(len(part.tokens) for part in parts), max(map(len, visible)))
    sizes = []
    for need, offered in zip(needs, (_ROWS, _TOKENS, _SLOTS), strict=True):
        place = bisect_left(offered, need)
        if place == len(offered):
            return None
        sizes.append(offered[place])
    shape = Shape(*sizes)
    places = shape.rows * shape.slots
    most = max(_FEW_PLACES, 4 * sum(map(len, visible)))  # lest all become as long as the longest
    few = places <= min(_MOST_PLACES, most)
    return shape if few and shape.rows * shape.tokens <= _MOST else None
