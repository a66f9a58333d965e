"""Checks that a loaded model is a causal language model with finite logits."""

from __future__ import annotations

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.trials import TEXT_LENGTH, agree, sample_ids


def is_finite(model: Model) -> bool:
    """Whether the model's logits are finite; half precision may overflow."""
    return bool(torch.isfinite(model.forward([sample_ids(model, TEXT_LENGTH)])).all())


def is_causal(model: Model) -> bool:
    """Whether distributions are independent of later tokens; false for encoder-only models."""
    ids = sample_ids(model, TEXT_LENGTH)
    changed = [*ids[:-1], (ids[-1] + 1) % model.vocab_size]
    return agree(model.forward([ids])[0, :-1], model.forward([changed])[0, :-1], model.module.dtype)
