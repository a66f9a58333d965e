"""The self-test refuses stores that are wrong in one detail, and costs a few short passes."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, MistralForCausalLM

from adafuse_core.engine.attention_windows import shortened
from adafuse_core.engine.forward import Model
from adafuse_core.engine.rounding import agree
from adafuse_core.engine.selftest import try_tree
from adafuse_core.engine.sequence_part import SequencePart
from adafuse_core.engine.store_choice import Options, examine
from adafuse_core.engine.tree import TreeStore
from tests import tiny
from tests.engine.test_stores import SMALL

LONG = SMALL | {"max_position_embeddings": 4096}
GEMMA3 = {"head_dim": 12, "query_pre_attn_scalar": 12, "num_key_value_heads": 2}
CONFIGS = {
    "full": lambda: tiny.llama(99),
    "sliding": lambda: transformers.MistralConfig(**LONG, sliding_window=512),
    "mixed": lambda: transformers.Gemma3TextConfig(**LONG | GEMMA3, sliding_window=512),
}


def build(kind, dtype=torch.float32):
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    config.initializer_range = 0.3
    return Model(AutoModelForCausalLM.from_config(config, dtype=dtype))


def window_off_by(tokens):
    mask = SequencePart.mask
    return mock.patch.object(SequencePart, "mask", lambda self, window: mask(self, window and window + tokens))


def visible_siblings():
    build_mask = SequencePart._build_mask

    def mask(self, *inputs):
        built = build_mask(self, *inputs)
        for row, position in enumerate(self.positions):
            built[row, [slot for slot in self.node_slots if self.slots.positions[slot] <= position]] = 0
        return built

    return mock.patch.object(SequencePart, "_build_mask", mask)


def shifted_positions_after_a_commit():
    init = SequencePart.__init__

    def shift(self, memo, *inputs):
        init(self, memo, *inputs)
        moved = len(memo.ids) > memo.root.depth + 4  # a prompt ends with four nodes
        self.positions = [position + (moved and index >= self.chunk) for index, position in enumerate(self.positions)]

    return mock.patch.object(SequencePart, "__init__", shift)


def swapped_heads():
    write = SequencePart.write
    return mock.patch.object(
        SequencePart, "write", lambda self, layer, keys, values: write(self, layer, keys.flip(1), values)
    )


def visible_freed_slots():
    commit = TreeStore.commit

    def stale(self, memo, context):
        slots = memo.kv
        freed = []
        with mock.patch.object(type(slots), "free", lambda self, slot: freed.append(slot)):
            commit(self, memo, context)
        slots.committed_mask[freed] = 0

    return mock.patch.object(TreeStore, "commit", stale)


def unwritten_nodes():
    """Nodes that reuse a slot do not write it."""
    write = SequencePart.write

    def forgetful(self, layer, keys, values):
        top = max(self._written)
        old = [index for index, slot in enumerate(self._written) if slot < top and index >= self.chunk]
        if layer == 0 and len(self.node_slots) and min(self.node_slots) < top and self.chunk == 0:
            keys = keys.clone()
            keys[:, :, old] = 0
        write(self, layer, keys, values)

    return mock.patch.object(SequencePart, "write", forgetful)


FAULTS = {
    "window too long": (lambda: window_off_by(1), ("sliding", "mixed")),
    "window too short": (lambda: window_off_by(-1), ("sliding", "mixed")),
    "visible siblings": (visible_siblings, CONFIGS),
    "shifted positions after a commit": (shifted_positions_after_a_commit, CONFIGS),
    "swapped heads": (swapped_heads, CONFIGS),
    "visible freed slots": (visible_freed_slots, CONFIGS),
    "lost keys": (unwritten_nodes, CONFIGS),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_right_tree_passes_in_few_tokens_whatever_the_window(kind):
    for dtype in (torch.float32, torch.bfloat16):
        model = build(kind, dtype)
        windows = [getattr(each, "sliding_window", None) for each in (model.module.config, *model.module.modules())]
        assert try_tree(model).problem is None
        assert model.forwards <= 6
        assert model.tokens <= 160
        assert windows == [
            getattr(each, "sliding_window", None) for each in (model.module.config, *model.module.modules())
        ]


@pytest.mark.parametrize("tokens", [1, -1])
def test_a_long_window_in_half_precision_that_is_wrong_by_one_token_is_refused(tokens):
    with window_off_by(tokens):
        assert "differ from those of fresh passes" in try_tree(build("mixed", torch.bfloat16)).problem


@pytest.mark.parametrize(("fault", "kind"), [(fault, kind) for fault, (_, kinds) in FAULTS.items() for kind in kinds])
def test_a_tree_with_a_fault_is_refused(fault, kind):
    make, _ = FAULTS[fault]
    with make():
        assert "differ from those of fresh passes" in try_tree(build(kind)).problem


class Stubborn(MistralForCausalLM):
    """Its window can't be shortened."""

    def __init__(self, config):
        super().__init__(config)
        self.own_window = config.sliding_window

    def forward(self, *inputs, **options):
        self.config.sliding_window = self.own_window
        return super().forward(*inputs, **options)


def stubborn(window):
    torch.manual_seed(0)
    longest = SMALL | {"max_position_embeddings": 10 * window}
    return Model(Stubborn(transformers.MistralConfig(**longest, sliding_window=window)))


def test_a_window_that_cannot_be_shortened_is_tested_at_its_full_length():
    model = stubborn(40)
    assert try_tree(model).problem is None
    assert model.tokens > 3 * 40
    with window_off_by(1):
        assert "differ" in try_tree(stubborn(40)).problem


@pytest.mark.parametrize("kind", ["tree", "prefill"])
def test_a_window_that_can_neither_be_shortened_nor_tested_is_not_trusted(kind):
    model = stubborn(10**8)
    if kind == "tree":
        assert "too long to be tested" in try_tree(model).problem
    else:
        assert "too long to be tested" in examine(model, Options(kv_store=kind)).limits


def test_windows_are_restored_after_an_error():
    model = build("mixed")
    with pytest.raises(KeyError), shortened(model, 8):
        raise KeyError(model.module.config.sliding_window)
    assert model.module.config.sliding_window == 512
    assert {layer.self_attn.sliding_window for layer in model.module.model.layers} <= {None, 512}


def test_rounding_in_half_precision_is_no_difference_in_large_vocabularies():
    draw = np.random.default_rng(0)
    logits = torch.from_numpy(draw.normal(size=(2, 262_144)))
    noise = torch.from_numpy(draw.normal(size=(2, 262_144)))
    rounded = logits + 0.05 * noise
    assert (rounded - logits).abs().max() > 0.2

    def model(dtype):
        return SimpleNamespace(module=SimpleNamespace(dtype=dtype, config=SimpleNamespace()), rounding_error=0.05)

    assert agree(model(torch.bfloat16), rounded, logits)
    assert not agree(model(torch.float32), rounded, logits)
    assert not agree(model(torch.bfloat16), logits + 0.12 * noise, logits)
