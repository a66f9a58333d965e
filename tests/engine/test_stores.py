"""Every store gives the logits of a fresh forward pass, past sliding windows too."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.selftest import fork_problem, is_causal
from tests import tiny

SMALL = {**tiny._SHAPE, "vocab_size": 99}
FAMILIES = {
    "llama": lambda: tiny.llama(99),
    "mistral": lambda: tiny.sliding_mistral(99),
    "qwen3": lambda: tiny.qwen3(99),
    "gpt2": lambda: tiny.gpt2(99),
    "gemma2": lambda: tiny.sliding_gemma2(99),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=12, sliding_window=16, query_pre_attn_scalar=12),
    "phi3": lambda: transformers.Phi3Config(**SMALL, pad_token_id=0),
    "olmo2": lambda: transformers.Olmo2Config(**SMALL),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, sliding_window=None),
    "lfm2": lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
}
PROMPT = tuple(range(5, 45))  # longer than the sliding windows
CONTINUATIONS = [(1, 2, 3), (4,), (1, 2, 9, 8, 7), ()]


def build(family):
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.num_hidden_layers = 2
    return Model(AutoModelForCausalLM.from_config(config))


def fresh(model, ids):
    return model.forward([list(ids)])[0]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.mark.parametrize("store", [ForkStore, PrefillStore])
def test_continuations_get_the_logits_of_a_fresh_pass(model, store):
    memory = store(model)
    memory.remember(PROMPT)
    for _ in range(2):  # the second time from memory
        for ids, logits in zip(CONTINUATIONS, memory.logits_along(PROMPT, CONTINUATIONS), strict=True):
            expected = fresh(model, PROMPT + ids)[len(PROMPT) - 1 :]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("store", [ForkStore, PrefillStore])
def test_rows_get_the_logits_of_a_fresh_pass(model, store):
    memory = store(model)
    memory.remember(PROMPT)
    rows = memory.rows([(*PROMPT, 1, token) for token in (2, 3, 4)])
    written = [[1, 2], [1, 3], [1, 4]]
    for tokens in ([5, 6, 7], [8, 9, 10]):
        for row, token in enumerate(tokens):
            written[row].append(token)
        rows.step(tokens)
    rows.select([2, 0])
    rows.step([11, 12])
    expected = [fresh(model, (*PROMPT, *written[row], token))[-1] for row, token in ((2, 11), (0, 12))]
    torch.testing.assert_close(rows.logits, torch.stack(expected), atol=1e-4, rtol=0)


def test_the_prompt_is_read_once(model):
    store = ForkStore(model)
    store.remember(PROMPT)
    store.rows([PROMPT])
    before = model.tokens
    context = PROMPT
    for token in range(10):
        context = (*context, token)
        store.remember(context)
        store.rows([context]).step([1])
        store.logits_along(context, [(1, 2), (3,)])
        store.forget(context[:-1])
    assert model.tokens - before == 10 * (1 + 1 + 4)


def test_forgotten_contexts_hold_no_memory(model):
    store = ForkStore(model)
    for _ in range(2):
        store.remember(PROMPT)
    store.rows([PROMPT])
    store.forget(PROMPT)
    assert store.tokens_held() == len(PROMPT)
    store.forget(PROMPT)
    assert store.tokens_held() == 0


def test_self_test_accepts_what_works(model):
    assert is_causal(model)
    assert fork_problem(model) is None


def test_self_test_finds_a_model_that_can_not_be_cached():
    config = transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = Model(AutoModelForCausalLM.from_config(config))
    assert is_causal(model)
    assert "differ" in fork_problem(model)
    store = PrefillStore(model)
    for ids, logits in zip(CONTINUATIONS, store.logits_along(PROMPT, CONTINUATIONS), strict=True):
        torch.testing.assert_close(logits, fresh(model, PROMPT + ids)[len(PROMPT) - 1 :], atol=1e-4, rtol=0)


def test_self_test_finds_an_encoder():
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    assert not is_causal(Model(AutoModelForCausalLM.from_config(config)))
