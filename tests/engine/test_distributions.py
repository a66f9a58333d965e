"""Logits become distributions whose likeliest tokens are in order, ties in order of id."""

from __future__ import annotations

import math

import pytest
import torch

from adafuse_core.engine import distributions as module
from adafuse_core.engine.distributions import distributions, top_k


def in_order(row, count):
    """The highest values with their indices, in plain Python."""
    ranked = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
    return ranked, [row[index] for index in ranked]


@pytest.mark.parametrize("levels", [2, 8, 200, 100_000])
@pytest.mark.parametrize("count", [1, 2, 8, 300])
def test_equal_values_are_in_order_of_index(levels, count):
    values = torch.randint(levels, (6, 300), generator=torch.Generator().manual_seed(levels + count)).double()
    indices, highest = top_k(values, count)
    assert list(zip(indices, highest, strict=True)) == [in_order(row, count) for row in values.tolist()]


@pytest.mark.parametrize("levels", [2, 50, 100_000])
@pytest.mark.parametrize("count", [1, 8, 40])
def test_only_the_best_blocks_of_a_large_vocabulary_are_searched(levels, count, monkeypatch):
    values = torch.randint(levels, (5, 64 * 90), generator=torch.Generator().manual_seed(levels + count)).double()
    values[0, -3:] = levels + 1.0  # in the last block
    expected = [in_order(row, count) for row in values.tolist()]
    searched = []
    topk = torch.topk
    monkeypatch.setattr(
        torch,
        "topk",
        lambda each, *inputs, **options: (searched.append(each.shape[-1]), topk(each, *inputs, **options))[1],
    )
    indices, highest = top_k(values, count)
    assert list(zip(indices, highest, strict=True)) == expected
    assert max(searched) < values.shape[-1]


def test_excluded_tokens_come_last():
    values = torch.full((2, 300), -math.inf)
    values[0, [7, 5, 200]] = torch.tensor([1.0, 1.0, 2.0])
    values[1, 299] = 0.0
    (first, second), (highest, _) = top_k(values, 5)
    assert (first[:3], highest[:4], second[0]) == ([200, 5, 7], [2.0, 1.0, 1.0, -math.inf], 299)


def test_logits_in_bfloat16_with_many_ties_are_not_sorted_as_a_whole(monkeypatch):
    logits = 3 * torch.randn(4, 40_000, generator=torch.Generator().manual_seed(0))
    logits[:, :12] = 20.0 + torch.arange(12).div(4, rounding_mode="floor")  # four equal values each
    monkeypatch.setattr(module, "_top_with_many_ties", None)
    for each in distributions(logits.bfloat16()):
        assert each.ids == (8, 9, 10, 11, 4, 5, 6, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 20])
def test_a_logit_that_is_not_finite_is_an_error(dtype, wrong, row):
    logits = torch.zeros(21, 50, dtype=dtype)
    logits[row, 33] = wrong
    with pytest.raises(FloatingPointError):
        distributions(logits)
