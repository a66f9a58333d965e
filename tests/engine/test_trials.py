"""The self-test also tries a sequence that starts with tokens of another one."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM

from adafuse_core.engine import tree
from adafuse_core.engine.fork import ForkStore, Snapshots
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.selftest import store_problem, try_tree
from adafuse_core.engine.slots import OwnMemory
from tests import tiny


def build():
    torch.manual_seed(0)
    config = tiny.llama(99)
    config.initializer_range = 0.3
    return Model(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def in_other_slots():
    slots_read = tree._slots_read
    return mock.patch.object(tree, "_slots_read", lambda donor: slots_read(donor)[::-1])


def without_values():
    beginning = OwnMemory.beginning

    def empty(self, slots, capacity, *, move):
        memory = beginning(self, slots, capacity, move=move)
        for layer in memory.layers.values():
            layer["values"].zero_()
        return memory

    return mock.patch.object(OwnMemory, "beginning", empty)


@pytest.mark.parametrize("wrong", [in_other_slots, without_values])
def test_a_wrong_beginning_is_found_in_a_tree(wrong):
    model = build()
    assert try_tree(model).problem is None
    with wrong():
        assert "differ" in try_tree(model).problem


def test_a_wrong_beginning_is_found_in_forks():
    def adopt(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        memo.kv = Snapshots(self._model.new_cache(), length)

    model = build()
    assert store_problem(model, ForkStore(model, chunk=4)) is None
    with mock.patch.object(ForkStore, "adopt", adopt):
        assert "differ" in store_problem(model, ForkStore(model, chunk=4))


def test_a_beginning_is_shared_without_a_further_pass():
    with mock.patch.object(tree.TreeStore, "reusable", return_value=0):
        alone = build()
        assert try_tree(alone).problem is None
    model, adopted = build(), []
    adopt = tree.TreeStore.adopt

    def counted(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        adopted.append(length)
        adopt(self, memo, donor, length, move=move)

    with mock.patch.object(tree.TreeStore, "adopt", counted):
        assert try_tree(model).problem is None
    assert adopted == [8]
    assert model.forwards == alone.forwards
