"""What a model must show before it is used: finite logits, and no look at later tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from adafuse_core.engine.rounding import sample_ids
from adafuse_core.engine.sanity import Flaw, find_flaw

VOCABULARIES = (11, 17, 31, 62, 341, 1000, 130_077)


class Bag:
    """Logits by the sum of all tokens, or of those so far."""

    module = SimpleNamespace(dtype=torch.float64, config=SimpleNamespace())
    rounding_error = 0.0

    def __init__(self, vocab_size, *, causal):
        self.vocab_size, self.causal = vocab_size, causal

    def forward(self, rows, *, last):
        ids = torch.tensor(rows, dtype=torch.float64)
        sums = ids.cumsum(-1) if self.causal else ids.sum(-1, keepdim=True).expand_as(ids)
        return torch.stack([sums, -sums], dim=-1)[:, -last:]


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("causal", [True, False])
def test_a_model_that_sees_later_tokens_is_found_out_whatever_its_vocabulary(vocab_size, causal):
    assert find_flaw(Bag(vocab_size, causal=causal)) is (None if causal else Flaw.NOT_CAUSAL)


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("stride", [17, 31])
def test_the_ids_of_a_trial_are_spread_over_the_vocabulary(vocab_size, stride):
    ids = sample_ids(Bag(vocab_size, causal=True), 11, stride)
    assert len(set(ids)) == 11
