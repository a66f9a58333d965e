"""Every store gives the distributions of fresh forward passes, past sliding windows too."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import tokens_in_free_memory
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.sanity import Flaw, find_flaw
from adafuse_core.engine.selftest import store_problem, try_tree
from adafuse_core.engine.store_choice import STORES, Options, choose_store, examine
from adafuse_core.engine.tree import shared_chunk
from adafuse_core.member_config import KV_STORES
from tests import tiny

SMALL = {**tiny._SHAPE, "vocab_size": 99}
HYBRID = {
    **SMALL,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "head_dim": 16,
}
FAMILIES = {  # and the fastest store that works
    "llama": (lambda: tiny.llama(99), "tree"),
    "mistral": (lambda: tiny.sliding_mistral(99), "tree"),
    "qwen2": (lambda: transformers.Qwen2Config(**SMALL), "tree"),
    "qwen3": (lambda: tiny.qwen3(99), "tree"),
    "gpt2": (lambda: tiny.gpt2(99), "tree"),
    "gemma2": (lambda: tiny.sliding_gemma2(99), "tree"),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=12, sliding_window=16, query_pre_attn_scalar=12),
        "tree",
    ),
    "phi3": (lambda: transformers.Phi3Config(**SMALL, pad_token_id=0), "tree"),
    "olmo2": (lambda: transformers.Olmo2Config(**SMALL), "tree"),
    "mixtral": (lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, sliding_window=None), "tree"),
    "gpt_oss": (
        lambda: transformers.GptOssConfig(**SMALL, num_local_experts=4, head_dim=12, sliding_window=16),
        "tree",
    ),
    "lfm2": (lambda: transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "fork"),
    "qwen3_next": (lambda: transformers.Qwen3NextConfig(**HYBRID), "fork"),
    "falcon_h1": (lambda: transformers.FalconH1Config(**SMALL, mamba_d_ssm=64, mamba_n_heads=4), "fork"),
}
PROMPT = tuple(range(5, 45))  # longer than the sliding windows


def build(family, dtype=torch.float32):
    torch.manual_seed(0)
    config = FAMILIES[family][0]()
    config.num_hidden_layers = 2
    return Model(AutoModelForCausalLM.from_config(config, dtype=dtype))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def stores(family):
    """The stores that work with the family, fastest first, each with its own model."""
    kinds = ["tree", "fork", "prefill"]
    for kind in kinds[kinds.index(FAMILIES[family][1]) :]:
        model = build(family)
        yield model, choose_store(model, kind, chunk=16).store


def fresh(model, context):
    return torch.log_softmax(model.forward([context], last=1)[0, -1], -1)


def read(store, memo, contexts):
    request = ReadRequest(memo, contexts)
    while not request.is_answered():
        store.read([request])
    return torch.stack([(row := memo.get(context)).table[row.row] for context in contexts])


def assert_close(got, expected):
    """Equal within 1e-4 times the spread of the logits, at least 1e-4: the spread is larger than in trained models."""
    torch.testing.assert_close(got, expected, atol=1e-4 * max(1.0, expected.std().item()), rtol=0)


def some_contexts(draw, committed):
    """Contexts that continue the committed one, a prefix of it, or each other."""
    contexts = [committed]
    for _ in range(6):
        base = draw.choice(contexts)
        if draw.random() < 0.2:
            base = committed[: len(committed) - draw.randrange(1, 4)]
        contexts.append(base + tuple(draw.randrange(1, 99) for _ in range(draw.randrange(1, 4))))
    return draw.sample(contexts, 4)


def check_distributions(store, reference, seed, rounds):
    """Compare distributions of three sequences in turn with fresh passes; returns their number."""
    draw, count = random.Random(seed), 0
    memos = [Memo(PROMPT[:length]) for length in (40, 3, 25)]
    for _ in range(rounds):
        for memo in memos:
            contexts = some_contexts(draw, memo.ids)
            expected = torch.stack([fresh(reference, context) for context in contexts])
            assert_close(read(store, memo, contexts), expected)
            store.commit(memo, max(contexts, key=len))
            count += len(contexts)
    return count


def test_distributions_are_those_of_fresh_passes(family, record_property):
    reference = build(family)
    count = sum(check_distributions(store, reference, family, rounds=6) for _, store in stores(family))
    assert count >= 144
    record_property("distributions equal to fresh passes", count)


def test_many_sequences_are_read_in_one_pass(family):
    reference = build(family)
    for _, store in stores(family):
        requests = [
            ReadRequest(Memo(PROMPT[:length]), [PROMPT[:length], (*PROMPT[:length], 7)]) for length in (40, 3, 25)
        ]
        while waiting := [request for request in requests if not request.is_answered()]:
            store.read(waiting)
        for request in requests:
            for context in request.contexts:
                row = request.memo.get(context)
                assert_close(row.table[row.row], fresh(reference, context))


def test_fastest_store_that_works_is_chosen(family):
    choice = choose_store(build(family))
    assert choice.store.kind == FAMILIES[family][1]
    if choice.store.kind == "fork":
        assert "no tree: " in str(choice)


def test_config_names_the_stores_in_the_order_in_which_they_are_tested():
    assert ("auto", *STORES) == KV_STORES


def test_last_kind_is_a_fallback_unless_the_user_named_it():
    mamba = transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert choose_store(Model(AutoModelForCausalLM.from_config(mamba))).fallback
    for wanted in KV_STORES:
        choice = choose_store(build("llama"), wanted, max_kv_tokens=100)
        assert not choice.fallback
        assert choice.forced == (wanted != "auto")
        assert choice.max_kv_tokens == (None if wanted == "prefill" else 100)  # it enforces its own bound


def test_prompt_is_read_once(family):
    model, store = next(stores(family))
    memo = Memo(PROMPT)
    read(store, memo, [PROMPT])
    before = model.tokens
    context = PROMPT
    for token in range(10):
        context = (*context, token)
        read(store, memo, [context, (*context, 1), (*context, 2)])
        store.commit(memo, context)
    assert model.tokens - before <= 10 * (3 if store.kind == "tree" else 8)


def test_commit_of_a_context_that_was_read_needs_no_pass(family):
    model, store = next(stores(family))
    memo = Memo(PROMPT)
    read(store, memo, [(*PROMPT, 1, 2, 3), (*PROMPT, 4)])
    before = model.forwards
    store.commit(memo, (*PROMPT, 1))
    for context in [(*PROMPT, 1), (*PROMPT, 1, 2), (*PROMPT, 1, 2, 3)]:
        assert memo.get(context)
    assert memo.get((*PROMPT, 4)) is None
    assert model.forwards == before


def test_tree_keeps_one_copy_of_a_prefix_however_many_branches():
    _, store = next(stores("llama"))
    memo = Memo(PROMPT)
    read(store, memo, [PROMPT])
    held = store.tokens_held(memo)
    read(store, memo, [(*PROMPT, first, second) for first in range(4) for second in range(4)])
    assert store.tokens_held(memo) == held == len(PROMPT) + 64
    for token in range(200):  # slots of removed branches are reused
        store.commit(memo, (*memo.ids, token % 99))
        read(store, memo, [memo.ids, (*memo.ids, 1, 2), (*memo.ids, 3, 4)])
    assert store.tokens_held(memo) < len(PROMPT) + 200 + 128


def test_memo_is_usable_after_an_error():
    _, store = next(stores("llama"))
    memo = Memo(PROMPT)
    read(store, memo, [PROMPT])
    bad = (*PROMPT, 10**6)
    with pytest.raises(IndexError):
        store.read([ReadRequest(memo, [bad])])
    expected = fresh(build("llama"), (*PROMPT, 1))
    assert_close(read(store, memo, [(*PROMPT, 1)])[0], expected)


def test_attention_that_the_user_chose_is_kept():
    assert "attn_implementation" in try_tree(build("llama"), user_attention=True).problem
    model = build("llama")
    assert choose_store(model, user_attention=True).store.kind == "fork"
    assert model.module.config._attn_implementation == "sdpa"


def test_rope_that_depends_on_length_is_not_mixed_in_one_pass():
    config = tiny.llama(99)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "dynamic" in try_tree(Model(AutoModelForCausalLM.from_config(config))).problem


def test_model_whose_cache_only_grows_uses_the_prefill_store():
    config = transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4)
    model = Model(AutoModelForCausalLM.from_config(config))
    assert find_flaw(model) is None
    choice = choose_store(model)
    assert choice.store.kind == "prefill"
    assert "no fork" in str(choice)
    assert store_problem(model, choice.store) is None
    assert store_problem(model, PrefillStore(model)) is None
    with pytest.raises(ValueError, match="no fork"):
        choose_store(model, "fork")


def test_bytes_per_token_exclude_constant_states(monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda _: 10**6)  # pages, and bytes of a page
    sizes = {family: examine(build(family), Options()).bytes_per_token for family in ("llama", "qwen3_next")}
    room = {family: tokens_in_free_memory(torch.device("cpu"), size) for family, size in sizes.items()}
    config = build("llama").module.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    assert room["llama"] == 10**12 // 2 // (2 * 2 * heads * 4)  # layers, keys and values, float32
    config = build("qwen3_next").module.config
    assert room["qwen3_next"] == 10**12 // 2 // (
        2 * config.num_key_value_heads * config.head_dim * 4
    )  # one layer of attention


def test_store_with_wrong_distributions_is_found():
    class Forgetful(ForkStore):
        def _run(self, group):
            return super()._run([(state, path[-1:]) for state, path in group])

    model = build("llama")
    assert "differ" in store_problem(model, Forgetful(model, chunk=4))


def test_encoder_is_not_causal():
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    assert find_flaw(Model(AutoModelForCausalLM.from_config(config))) is Flaw.NOT_CAUSAL


@pytest.mark.parametrize(
    ("unread", "shares"),
    [
        ([], []),
        ([0, 0], [0, 0]),
        ([30], [30]),
        ([1000], [512]),
        ([0, 2000, 2000], [0, 512, 0]),  # of equal ones the oldest
        ([2000] * 8 + [40], [472] + [0] * 7 + [40]),
        ([2000, 600, 50], [128, 334, 50]),
        ([0, 100, 90, 80], [0, 100, 90, 80]),
        ([2000] + [300] * 3, [128, 300, 84, 0]),  # many short ones do not make the oldest wait for ever
    ],
)
def test_a_pass_is_shared_by_prompts_so_that_short_ones_need_not_wait(unread, shares):
    assert shared_chunk(unread, 512) == shares
