"""Whether a loaded model is a causal language model that computes numbers."""

from __future__ import annotations

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.trials import LENGTH, agree, junk


def is_finite(model: Model) -> bool:
    """Whether the model's logits are finite; half precision may overflow."""
    return bool(torch.isfinite(model.forward([junk(model, LENGTH)])).all())


def is_causal(model: Model) -> bool:
    """Whether later tokens leave earlier distributions alone; encoder-only models fail this."""
    ids = junk(model, LENGTH)
    changed = [*ids[:-1], ids[0]]
    return agree(model.forward([ids])[0, :-1], model.forward([changed])[0, :-1], model.module.dtype)
