"""What a loaded model really does, found out by running it on a few tokens instead of by its class name."""

from __future__ import annotations

import torch

from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}  # of the logits' spread; norms run in float32 anyway
_HALF_TOLERANCE = 0.15
_LENGTH = 12


def is_finite(model: Model) -> bool:
    """Whether the model computes numbers at all; half precision may overflow."""
    return bool(torch.isfinite(model.forward([_junk(model)])).all())


def is_causal(model: Model) -> bool:
    """Whether later tokens leave earlier distributions alone; encoder-only models fail this."""
    ids = _junk(model)
    changed = [*ids[:-1], ids[0]]
    first, second = model.forward([ids])[0, :-1], model.forward([changed])[0, :-1]
    return _agree(first, second)


def fork_problem(model: Model) -> str | None:
    """Why cached forks can't be used with this model; None if they reproduce a fresh forward pass."""
    ids = _junk(model)
    half = _LENGTH // 2
    start, rest, other = tuple(ids[:half]), tuple(ids[half:]), tuple(reversed(ids[half:]))
    store = ForkStore(model)
    try:
        store.remember(start)
        store.logits_along(start, [other, rest[:2]])  # a ragged branch that must leave no trace
        along = store.logits_along(start, [rest])[0]
        rows = store.rows([(*start, rest[0]), (*start, other[0])])
        rows.select([1])
        rows.step([other[1]])
        fresh = model.forward([ids])[0, half - 1 :]
        branch = model.forward([[*start, *other[:2]]])[0, -1]
    except Exception as error:  # whatever a model does with a cache it can't use
        return f"{type(error).__name__}: {error}"
    if not _agree(along, fresh):
        return "cached logits differ from fresh ones"
    return None if _agree(rows.logits[0], branch) else "branches disturb each other"


def _junk(model: Model) -> list[int]:
    """Some token ids, spread over the vocabulary, all different."""
    return [(7 + 31 * index) % model.vocab_size for index in range(_LENGTH)]


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    tolerance = _TOLERANCE.get(first.dtype, _HALF_TOLERANCE)
    spread = second.double().std().clamp(min=1e-6)
    return bool(((first.double() - second.double()).abs().max() / spread) < tolerance)
