"""Checks that a loaded model is a causal language model with finite logits."""

from __future__ import annotations

from enum import Enum

from adafuse_core.engine.distributions import all_finite
from adafuse_core.engine.forward import Model
from adafuse_core.engine.rounding import TEXT_LENGTH, agree_in_batch, sample_ids


class Flaw(Enum):
    """What makes a model useless."""

    NOT_FINITE = "it returns NaN or infinite logits"  # half precision may overflow
    NOT_CAUSAL = "its distributions depend on later tokens"  # such as those of an encoder


def find_flaw(model: Model) -> Flaw | None:
    """What makes a model useless, found in one short pass; None for a causal model with finite logits."""
    ids = sample_ids(model, TEXT_LENGTH)
    changed = [*ids[:-1], (ids[-1] + 1) % model.vocab_size]
    # The last logits depend on all states before them, and larger vocabularies make every further one expensive.
    logits = model.forward([ids, changed], last=3)  # [2, 3, vocab]
    if not all_finite(logits):
        return Flaw.NOT_FINITE
    causal = agree_in_batch(model, logits[0, :-1], logits[1, :-1])
    return None if causal else Flaw.NOT_CAUSAL
