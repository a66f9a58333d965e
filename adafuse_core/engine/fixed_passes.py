"""Passes in fixed shapes, recorded once and replayed: what keeps a GPU from waiting for Python between its kernels.

A pass that reads a few tokens of a few sequences is padded to the next larger shape. Its inputs lie in tensors that
stay where they are, keys and values in a pool, so that the second pass of a shape can be recorded (`graphs.py`) and
later ones are replays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adafuse_core.engine.fixed_attention import FixedAttention
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import Recorder, Run
from adafuse_core.engine.pass_shapes import MOST_TOKENS, Shape, smallest_shape
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import Pool

logger = logging.getLogger(__name__)

_KEPT = 64  # shapes


@dataclass
class FixedPass:
    """The pass of one shape, how often it ran, and its recording once there is one."""

    attention: FixedAttention
    runs: int = 0
    replay: Run | None = None


class FixedPasses:
    """Runs small passes over sequences in a pool.

    Args:
        model: On one device.
        pool: Of all its sequences.
        record: See `graphs.py`.

    Attributes:
        problem: Why recording was given up.
    """

    def __init__(self, model: Model, pool: Pool, record: Recorder) -> None:
        self.pool = pool
        self.problem: Exception | None = None
        self._model = model
        self._record = record
        self._passes: dict[Shape, FixedPass] = {}  # the latest used last
        self._moved = 0  # of the pool, when the passes were recorded
        self._logits: torch.Tensor | None = None  # [MOST_TOKENS, vocab], of all recorded passes

    def read(self, parts: Sequence[SequencePart]) -> torch.Tensor | None:
        """One pass.

        Returns:
            The logits after each token, `[tokens of all parts, vocab]`; None if no shape fits the pass, or passes
            can't be recorded.
        """
        if self.problem is not None:
            return None
        visible = [part.visible() for part in parts]
        shape = smallest_shape([len(part.tokens) for part in parts], [len(places) for places in visible])
        if shape is None:
            return None
        fixed = self._pass_of(shape)
        with self._model.passing(shape.rows * shape.tokens), fixed.attention.loaded(parts, visible):
            return self._run(fixed, shape).index_select(0, fixed.attention.inputs.wanted)

    def _pass_of(self, shape: Shape) -> FixedPass:
        self.pool.fit()
        if self._moved != self.pool.moved:  # recorded passes would read where the keys lay before
            self._passes.clear()
            self._moved = self.pool.moved
        fixed = self._passes.pop(shape, None) or FixedPass(FixedAttention(self.pool, shape))
        self._passes[shape] = fixed
        while len(self._passes) > _KEPT:
            del self._passes[next(iter(self._passes))]
        return fixed

    def _run(self, fixed: FixedPass, shape: Shape) -> torch.Tensor:
        """The logits after each token, padding included: `[rows * tokens or more, vocab]`."""
        if fixed.runs == 1:  # a shape that comes once is not worth a recording
            fixed.replay = self._recorded(fixed.attention, shape)
        if fixed.replay is None:
            logits = self._computed(fixed.attention)
        else:
            fixed.replay()
            assert self._logits is not None
            logits = self._logits
        fixed.runs += 1
        return logits

    def _computed(self, attention: FixedAttention) -> torch.Tensor:
        with attention as tree:
            return self._model.flat(tree.inputs.ids[None], tree.inputs.positions[None], tree)

    def _recorded(self, attention: FixedAttention, shape: Shape) -> Run | None:
        def run() -> None:
            logits = self._computed(attention)
            if self._logits is None:
                self._logits = logits.new_zeros(MOST_TOKENS, logits.shape[1])
            self._logits[: len(logits)] = logits

        try:
            if self._logits is None:
                run()
            return self._record(run)
        except torch.OutOfMemoryError as error:
            logger.warning("no memory to record a pass of %s: %s", shape, error)
        except Exception as error:  # whatever a model does that can't be recorded
            logger.warning("passes are no longer recorded: %s: %s", type(error).__name__, error)
            self.problem = error.with_traceback(None)  # a traceback would keep the tensors of its frames alive
            self._passes.clear()
            self._logits = None
        return None
