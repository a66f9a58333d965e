"""Large linear layers give the same products for any number of rows; other layers are left alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from adafuse_core.engine.linear_layers import FewRowsLinear, speed_up_linear_layers

LARGE = 512, 544  # inputs, outputs: more than a megabyte in float32


@pytest.fixture(autouse=True)
def _with_mkl(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def sped_up(layer):
    module = nn.Sequential(layer)
    speed_up_linear_layers(module)
    return module[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 15, 16])
@torch.inference_mode()
def test_the_products_are_those_of_a_plain_layer(rows, bias):
    torch.manual_seed(rows)
    plain = nn.Linear(*LARGE, bias=bias)
    fast = sped_up(copy.deepcopy(plain))
    assert type(fast) is FewRowsLinear
    states = torch.randn(1, rows, LARGE[0])
    torch.testing.assert_close(fast(states), plain(states), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast(states[0]), plain(states[0]), rtol=1e-4, atol=1e-5)


def test_no_rows_are_no_error():
    assert sped_up(nn.Linear(*LARGE))(torch.randn(1, 0, LARGE[0])).shape == (1, 0, LARGE[1])


@torch.inference_mode()
def test_copies_have_the_same_products():
    layer, states = sped_up(nn.Linear(*LARGE)), torch.randn(6, LARGE[0])
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(states), layer(states))


class Special(nn.Linear):
    """A layer with a forward pass of its own."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(64, 64),
        nn.Linear(512, 545),
        nn.Linear(1024, 1024, dtype=torch.bfloat16),
        nn.Linear(*LARGE, device="meta"),
        Special(*LARGE),
    ],
    ids=["small", "no whole blocks", "bfloat16", "no weights", "other class"],
)
def test_other_layers_are_left_alone(layer):
    kind = type(layer)
    assert type(sped_up(layer)) is kind


def test_without_mkl_nothing_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert type(sped_up(nn.Linear(*LARGE))) is nn.Linear
