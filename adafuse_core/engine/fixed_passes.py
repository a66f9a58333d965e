"""Passes in fixed shapes, recorded once and replayed, so that a GPU does not wait for Python between kernels.

A pass over a few tokens of a few sequences is padded to the next larger shape. Its inputs are in tensors at fixed
addresses, its keys and values in a pool, so that the second pass of a shape can be recorded (`graphs.py`) and later
passes replay the recording.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adafuse_core.engine.fixed_attention import FixedAttention
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import Recorder, Run
from adafuse_core.engine.pass_shapes import MAX_TOKENS, Shape, smallest_shape
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.slots import Pool

logger = logging.getLogger(__name__)

_MAX_SHAPES = 64


@dataclass
class FixedPass:
    """Passes of one shape: how many have run, and the recording if there is one."""

    attention: FixedAttention
    runs: int = 0
    replay: Run | None = None


class FixedPasses:
    """Runs small passes over the sequences of a pool, for a model on one device.

    Attributes:
        problem: The error that ended recording, if any.
    """

    def __init__(self, model: Model, pool: Pool, record: Recorder) -> None:
        self.pool = pool
        self.problem: Exception | None = None
        self._model = model
        self._record = record
        self._passes: dict[Shape, FixedPass] = {}  # least recently used first
        self._moves = 0  # of the pool, when the passes were recorded
        self._logits: torch.Tensor | None = None  # [MAX_TOKENS, vocab], output of all recorded passes

    def read(self, parts: Sequence[SequencePart]) -> torch.Tensor | None:
        """Run one pass. Returns the logits after each token, `[tokens of all parts, vocab]`.

        None if no shape fits the pass, or recording has failed.
        """
        if self.problem is not None:
            return None
        visible = [part.visible_cells() for part in parts]
        shape = smallest_shape([len(part.tokens) for part in parts], [len(cells) for cells in visible])
        if shape is None:
            return None
        fixed = self._fixed_pass(shape)
        with self._model.exclusive_pass(shape.rows * shape.tokens), fixed.attention.loaded(parts, visible):
            return self._run(fixed, shape).index_select(0, fixed.attention.inputs.wanted)

    def _fixed_pass(self, shape: Shape) -> FixedPass:
        self.pool.grow_tensors()
        if self._moves != self.pool.moves:  # recordings hold the old addresses
            self._passes.clear()
            self._moves = self.pool.moves
        fixed = self._passes.pop(shape, None) or FixedPass(FixedAttention(self.pool, shape))
        self._passes[shape] = fixed
        while len(self._passes) > _MAX_SHAPES:
            del self._passes[next(iter(self._passes))]
        return fixed

    def _run(self, fixed: FixedPass, shape: Shape) -> torch.Tensor:
        """The logits after each token, padding included: `[rows * tokens or more, vocab]`."""
        if fixed.runs == 1:  # a shape that occurs only once is not worth recording
            fixed.replay = self._recording(fixed.attention, shape)
        if fixed.replay is None:
            logits = self._forward(fixed.attention)
        else:
            fixed.replay()
            assert self._logits is not None
            logits = self._logits
        fixed.runs += 1
        return logits

    def _forward(self, attention: FixedAttention) -> torch.Tensor:
        with attention as tree:
            return self._model.read_tensors(tree.inputs.ids[None], tree.inputs.positions[None], tree)

    def _recording(self, attention: FixedAttention, shape: Shape) -> Run | None:
        def run() -> None:
            logits = self._forward(attention)
            if self._logits is None:
                self._logits = logits.new_zeros(MAX_TOKENS, logits.shape[1])
            self._logits[: len(logits)] = logits

        try:
            if self._logits is None:
                run()
            return self._record(run)
        except torch.OutOfMemoryError as error:
            logger.warning("not enough memory to record a pass of %s: %s", shape, error)
        except Exception as error:  # the model may do anything that can't be recorded
            logger.warning("passes are no longer recorded: %s: %s", type(error).__name__, error)
            self.problem = error.with_traceback(None)  # a traceback would keep the tensors of its frames alive
            self._passes.clear()
            self._logits = None
        return None
