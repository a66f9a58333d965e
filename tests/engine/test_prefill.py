"""The prefill store extends the model's own cache where that is exact, and recomputes contexts elsewhere."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from adafuse_core import Ensemble, MemberConfig
from adafuse_core.backends.local import LocalBackend
from adafuse_core.engine import rounding
from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.selftest import probe_cache
from adafuse_core.engine.store_choice import StoreChoice, choose_store
from tests import tiny

SMALL = {"vocab_size": 99, "hidden_size": 48, "num_hidden_layers": 2}
SHAPE = {**tiny._SHAPE, "vocab_size": 99}
JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
    "pad_token_id": 0,
}
ALL = CacheAbilities(several_tokens=True, several_rows=True)
FAMILIES = {  # and what their caches support
    "mamba": (lambda: transformers.MambaConfig(**SMALL, state_size=4), CacheAbilities(several_rows=True)),
    "falcon_mamba": (lambda: transformers.FalconMambaConfig(**SMALL, state_size=4), CacheAbilities(several_rows=True)),
    "mamba2": (
        lambda: transformers.Mamba2Config(**SMALL, state_size=4, num_heads=6, head_dim=16, n_groups=1, chunk_size=8),
        ALL,
    ),
    "rwkv": (lambda: transformers.RwkvConfig(**SMALL), CacheAbilities(several_tokens=True)),
    "jamba": (lambda: transformers.JambaConfig(**SHAPE, **JAMBA), CacheAbilities(several_rows=True)),
    "lfm2": (lambda: tiny.lfm2(99), ALL),
    "llama": (lambda: tiny.llama(99), ALL),
    "mistral": (lambda: tiny.sliding_mistral(99), ALL),
}
PROMPT = tuple(range(5, 45))


def build(family, *, kind=AutoModelForCausalLM.from_config):
    torch.manual_seed(0)
    config = FAMILIES[family][0]()
    config.initializer_range = 0.3
    return Model(kind(config))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def store_of(model):
    store = choose_store(model, "prefill").store
    model.forwards = model.tokens = 0
    return store


def read(store, memo, *contexts):
    request = ReadRequest(memo, contexts)
    while not request.is_answered():
        store.read([request])
    return torch.stack([(row := memo.get(context)).table[row.row] for context in contexts])


def assert_fresh(model, got, *contexts):
    forwards, tokens = model.forwards, model.tokens
    for row, context in zip(got, contexts, strict=True):
        expected = torch.log_softmax(model.forward([context], last=1)[0, -1], -1)
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    model.forwards, model.tokens = forwards, tokens


def read_and_compare(model, store, memo, *contexts):
    """Read contexts and compare them with fresh passes; returns the number of tokens read."""
    before = model.tokens
    got = read(store, memo, *contexts)
    count = model.tokens - before
    assert_fresh(model, got, *contexts)
    return count


def test_abilities_of_a_cache_are_found(family):
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    abilities, limits = probe_cache(model)
    assert abilities == FAMILIES[family][1]
    assert limits.startswith(", recomputing the context of branches: ") == (not abilities.several_rows)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


def test_draft_reads_each_token_once(family):
    model = build(family)
    store, memo = store_of(model), Memo(PROMPT)
    context = PROMPT
    counts = []
    for token in range(8):
        counts.append(read_and_compare(model, store, memo, context))
        context = (*context, 50 + token)
    assert counts == [len(PROMPT)] + [1] * 7
    assert store.tokens_held(memo) == len(PROMPT) + 7


def test_draft_continues_after_a_commit_of_its_own_words(family):
    model = build(family)
    store, memo = store_of(model), Memo(PROMPT)
    read(store, memo, PROMPT)
    read(store, memo, (*PROMPT, 1))
    read(store, memo, (*PROMPT, 1, 2))
    for committed in [(*PROMPT, 1), (*PROMPT, 1, 2)]:
        store.commit(memo, committed)
        assert store.tokens_held(memo) == len(PROMPT) + 2
    assert read_and_compare(model, store, memo, (*PROMPT, 1, 2, 3)) == 1


def test_branches_are_rows_of_one_cache_and_the_chosen_one_continues():
    for family in ("mamba", "mamba2", "jamba", "lfm2", "llama", "mistral"):
        model = build(family)
        store, memo = store_of(model), Memo(PROMPT)
        read(store, memo, PROMPT)
        tails = [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)]
        for length, rows in [(1, (0, 1, 2)), (2, (2, 0, 1)), (3, (0, 2)), (4, (2,))]:
            contexts = [PROMPT + tails[row][:length] for row in rows]
            assert store.tokens_needed(ReadRequest(memo, contexts)) >= len(rows) * (len(PROMPT) + length)
            assert read_and_compare(model, store, memo, *contexts) == len(rows)
            assert store.tokens_held(memo) == len(rows) * (len(PROMPT) + length)
        store.commit(memo, PROMPT + tails[2][:3])
        assert read_and_compare(model, store, memo, (*PROMPT, *tails[2], 13)) == 1


def test_rows_that_all_continue_are_not_reordered(monkeypatch):
    model = build("llama")
    store, memo = store_of(model), Memo(PROMPT)
    read(store, memo, PROMPT)
    read(store, memo, *((*PROMPT, token) for token in range(9)))
    monkeypatch.setattr(transformers.DynamicCache, "reorder_cache", None)
    assert read_and_compare(model, store, memo, *((*PROMPT, token, 4) for token in range(9))) == 9


def test_contexts_at_or_above_the_end_of_the_cache_are_recomputed(family):
    model = build(family)
    store, memo = store_of(model), Memo(PROMPT)
    read(store, memo, PROMPT)
    assert read_and_compare(model, store, memo, (*PROMPT, 1), PROMPT[:-2]) == 1 + len(PROMPT) - 2
    store.commit(memo, (*PROMPT, 1, 2, 3, 4))
    assert memo.get((*PROMPT, 1)) is None
    assert read_and_compare(model, store, memo, (*PROMPT, 1)) == len(PROMPT) + 1


def test_branches_without_a_cache_share_one_prefill():
    model = build("mamba")
    store, memo = store_of(model), Memo(PROMPT)
    read(store, memo, PROMPT)
    memo.kv = None
    assert read_and_compare(model, store, memo, *((*PROMPT, token) for token in (1, 2, 3))) == len(PROMPT) + 3
    assert read_and_compare(model, store, memo, *((*PROMPT, token, 4) for token in (1, 2, 3))) == 3


def test_commit_of_another_members_candidate_recomputes_the_context_once(family):
    model = build(family)
    store, memo = store_of(model), Memo(PROMPT)
    for length in range(3):
        read(store, memo, PROMPT + (1, 2)[:length])
    ours, theirs, longer = (*PROMPT, 1), (*PROMPT, 3, 4), (*PROMPT, 5, 6, 7)
    scoring = read_and_compare(model, store, memo, theirs, longer)
    assert scoring == 2 * len(longer)
    assert store.tokens_held(memo) == len(PROMPT) + 2  # candidates are read beside the cache
    assert memo.get(ours)
    store.commit(memo, theirs)
    assert store.tokens_held(memo) == 0
    counts = [read_and_compare(model, store, memo, theirs + (8, 9, 10)[:length]) for length in range(1, 4)]
    assert counts == [len(theirs) + 1, 1, 1]


def test_several_tokens_extend_a_cache_in_one_pass_where_that_is_exact(family):
    model = build(family)
    store, memo = store_of(model), Memo(PROMPT)
    read(store, memo, PROMPT)
    count = read_and_compare(model, store, memo, (*PROMPT, 1, 2, 3))
    assert count == (3 if FAMILIES[family][1].several_tokens else len(PROMPT) + 3)


def test_drafts_branches_and_commits_in_any_order_equal_fresh_passes(family, record_property):
    model = build(family)
    store, draw, count = store_of(model), random.Random(family), 0
    memos = [Memo(PROMPT[:length]) for length in (40, 3, 25, 1)]
    ends = {memo: [memo.ids] for memo in memos}
    for _ in range(60):
        memo = draw.choice(memos)
        if draw.random() < 0.2:
            store.commit(memo, draw.choice(ends[memo]))
            ends[memo] = [memo.ids]
        elif draw.random() < 0.2:
            ends[memo] = [memo.ids + tuple(draw.choices(range(99), k=draw.randrange(1, 5))) for _ in range(3)]
        elif draw.random() < 0.3:
            end = draw.choice(ends[memo])
            ends[memo] = [(*end, token) for token in draw.sample(range(99), 3)]
        else:
            ends[memo] = [
                (*end, draw.randrange(99)) for end in draw.sample(ends[memo], draw.randint(1, len(ends[memo])))
            ]
        read_and_compare(model, store, memo, *ends[memo])
        count += len(ends[memo])
    assert count >= 100
    record_property("distributions equal to fresh passes", count)


def test_sequences_in_one_read_extend_their_own_caches(family):
    model = build(family)
    store = store_of(model)
    memos = [Memo(PROMPT[:length]) for length in (40, 3, 25)]
    for step in range(4):
        requests = [ReadRequest(memo, [memo.ids + (7, 8, 9)[:step]]) for memo in memos]
        before = model.tokens
        store.read(requests)
        assert model.tokens - before == (3 if step else 68)
        for request in requests:
            assert_fresh(model, read(store, request.memo, *request.contexts), *request.contexts)


class Forgetful(LlamaForCausalLM):
    """Its cache loses a value whenever it grows."""

    def forward(self, *args, past_key_values=None, **options):
        if past_key_values is not None:
            past_key_values.layers[0].values[:, :, 0] = 0
        return super().forward(*args, past_key_values=past_key_values, **options)


class Shared(LlamaForCausalLM):
    """It has one cache for all sequences."""

    def forward(self, *args, past_key_values=None, use_cache=None, **options):
        if past_key_values is not None:
            past_key_values = self.newest
        outputs = super().forward(*args, past_key_values=past_key_values, use_cache=use_cache, **options)
        if use_cache:
            self.newest = outputs.past_key_values
        return outputs


class Mixed(LlamaForCausalLM):
    """All rows of its cache get the keys of the first row."""

    def forward(self, *args, past_key_values=None, **options):
        if past_key_values is not None:
            for layer in past_key_values.layers:
                layer.keys = layer.keys[:1].expand_as(layer.keys)
        return super().forward(*args, past_key_values=past_key_values, **options)


class Hasty(LlamaForCausalLM):
    """It reads the last token several times in place of several tokens."""

    def forward(self, input_ids, past_key_values=None, **options):
        if past_key_values is not None and input_ids.shape[1] > 1:
            input_ids = input_ids[:, -1:].expand_as(input_ids)
        return super().forward(input_ids, past_key_values=past_key_values, **options)


class Cacheless(LlamaForCausalLM):
    """It returns no cache."""

    def forward(self, *args, **options):
        return super().forward(*args, **options | {"use_cache": False})


class Failing(LlamaForCausalLM):
    """It can't continue a cache."""

    def forward(self, *args, past_key_values=None, **options):
        if past_key_values is not None:
            raise NotImplementedError("no cache here")
        return super().forward(*args, **options)


RECOMPUTING = "prefill, recomputing the context at every step: "
WRONG_CACHES = {
    Forgetful: (None, f"{RECOMPUTING}distributions after its cache differ from those of fresh passes"),
    Shared: (None, f"{RECOMPUTING}distributions after its cache differ from those of fresh passes"),
    Cacheless: (None, f"{RECOMPUTING}the model returns no cache"),
    Failing: (None, f"{RECOMPUTING}NotImplementedError: no cache here"),
    Mixed: (
        CacheAbilities(several_tokens=True),
        "prefill, recomputing the context of branches: distributions after its cache differ",
    ),
    Hasty: (CacheAbilities(several_rows=True), "prefill (as configured)"),
}


@pytest.mark.parametrize("kind", WRONG_CACHES)
def test_wrong_cache_is_not_used(kind):
    model = build("llama", kind=kind)
    choice = choose_store(model, "prefill")
    abilities, message = WRONG_CACHES[kind]
    assert str(choice).startswith(message)
    assert probe_cache(model)[0] == abilities
    memo = Memo(PROMPT)
    read_and_compare(model, choice.store, memo, PROMPT)
    read_and_compare(model, choice.store, memo, (*PROMPT, 1), (*PROMPT, 2))
    read_and_compare(model, choice.store, memo, (*PROMPT, 1, 3), (*PROMPT, 2, 4))
    read_and_compare(model, choice.store, memo, (*PROMPT, 2, 4, 5, 6))
    assert (choice.store.tokens_held(memo) > 0) == (abilities is not None)


@pytest.mark.parametrize("kind", [Forgetful, Shared, Cacheless, Failing])
@pytest.mark.parametrize("error", [0.3, 100.0])
def test_wrong_cache_of_a_quantized_model_is_found_however_large_the_rounding_errors_are(kind, error, monkeypatch):
    monkeypatch.setattr(rounding, "_error_in_batch", lambda _: error)
    model = build("llama", kind=kind)
    model.module.bfloat16()
    model.module.config.quantization_config = {"quant_method": "of a test"}
    assert str(choose_store(model, "prefill")).startswith(f"{WRONG_CACHES[kind][1]}, rounding errors up to")


def test_position_embeddings_that_depend_on_length_rule_out_a_cache():
    config = tiny.llama(99)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "recomputing the context at every step: its dynamic" in str(
        choose_store(Model(LlamaForCausalLM(config)), "prefill")
    )


def test_a_cache_is_tested_with_a_shorter_window_if_the_window_is_long():
    config = transformers.MistralConfig(**{**SHAPE, "max_position_embeddings": 10**9}, sliding_window=10**8)
    model = Model(AutoModelForCausalLM.from_config(config))
    assert probe_cache(model) == (ALL, "")
    assert model.tokens < 1000


class Flaky:
    """Replaces a model's forward; fails once when `failure` is set."""

    def __init__(self, module):
        self.forward, self.failure = module.forward, None
        module.forward = self

    def __call__(self, *args, **options):
        outputs = self.forward(*args, **options)  # the cache has grown by then
        failure, self.failure = self.failure, None
        if failure == "nan":
            outputs.logits[:] = float("nan")
        elif failure is not None:
            raise failure
        return outputs


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt(), "nan"])
def test_failed_pass_drops_the_cache_of_its_sequence_only(family, failure):
    model = build(family)
    store, memo, other = store_of(model), Memo(PROMPT), Memo(PROMPT[:9])
    flaky = Flaky(model.module)
    read(store, memo, PROMPT)
    read(store, other, other.ids)
    flaky.failure = failure
    with pytest.raises(FloatingPointError if failure == "nan" else type(failure)):
        read(store, memo, (*PROMPT, 1))
    assert store.tokens_held(memo) == 0
    assert store.tokens_held(other) == 9
    for length in range(1, 4):
        read_and_compare(model, store, memo, PROMPT + (1, 2, 3)[:length])
        read_and_compare(model, store, other, other.ids + (1, 2, 3)[:length])
    assert store.tokens_held(memo) == len(PROMPT) + 3


def test_sequences_without_room_are_read_without_a_cache():
    model = build("mamba")
    store, memos = store_of(model), [Memo(PROMPT) for _ in range(3)]
    store.max_kv_tokens = 2 * (len(PROMPT) + 4)
    for length in range(8):
        for memo in memos:
            read_and_compare(model, store, memo, PROMPT + tuple(range(length)))
            assert sum(map(store.tokens_held, memos)) <= store.max_kv_tokens
        assert max(map(store.tokens_held, memos)) == len(PROMPT) + length
    holder = max(memos, key=store.tokens_held)
    read_and_compare(model, store, holder, *((*PROMPT, *range(7), token) for token in (10, 11, 12)))
    assert list(map(store.tokens_held, memos)) == [0, 0, 0]  # three rows are too many
    read_and_compare(model, store, memos[0], (*PROMPT, *range(7), 10))
    assert store.tokens_held(memos[0]) == len(PROMPT) + 8


class Cancelled(Exception):
    pass


def test_memory_is_free_after_cancelling_and_closing():
    model = build("mamba")
    backend = LocalBackend(model, choose_store(model, "prefill", max_kv_tokens=1000), name="a")
    left = 5

    def check():
        nonlocal left
        left -= 1
        if left < 0:
            raise Cancelled

    sessions = [
        backend.open(PROMPT, window=None, lookup=False, raise_if_cancelled=call) for call in (check, lambda: None)
    ]
    assert backend.abilities().max_kv_tokens is None  # the store enforces the bound, no request waits
    with pytest.raises(Cancelled):
        sessions[0].draft([PROMPT], 20, 2, lambda *_: False)
    steps = sessions[1].draft([PROMPT], 5, 2, lambda *_: False)
    assert len(steps[0]) == 5
    assert backend.tokens_held() > len(PROMPT) + 4
    sessions[0].close()
    assert backend.tokens_held() == len(PROMPT) + 4
    sessions[1].close()
    assert backend.tokens_held() == 0


def test_memory_bound_is_enforced_by_recomputing():
    model = build("mamba")
    bound = len(PROMPT) + 10
    plain = StoreChoice(store=PrefillStore(model))
    drafts = []
    for choice, most in [(choose_store(model, "prefill", max_kv_tokens=bound), bound), (plain, 0)]:
        backend = LocalBackend(model, choice, name="a")
        session = backend.open(PROMPT, window=None, lookup=False, raise_if_cancelled=lambda: None)
        held = []

        def until(*_, held=held, backend=backend):
            held.append(backend.tokens_held())
            return False

        drafts.append(session.draft([PROMPT], 20, 2, until)[0])
        assert max(held) <= most
        session.close()
    assert [step.ids for step in drafts[0]] == [step.ids for step in drafts[1]]


def mamba(vocab):
    return transformers.MambaConfig(**SMALL | {"vocab_size": vocab}, initializer_range=0.3)


@pytest.mark.parametrize("family", [mamba, tiny.llama])
def test_single_member_reads_its_prompt_once(tmp_path, family):
    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level(), family)
    with Ensemble.from_pretrained(
        {"model": str(path), "kv_store": "prefill"}, strategy="single", speculation="off"
    ) as ensemble:
        model = ensemble.members[0].backend.model
        before = model.tokens
        usage = ensemble.generate("The quick brown fox. " * 8, max_new_tokens=40).usage
        written, prompt = usage.completion_tokens["own"], usage.prompt_tokens["own"]
        assert model.tokens - before <= prompt + written + 24  # tokens read to find the end of the last word
        assert ensemble.members[0].backend.tokens_held() == 0


@pytest.mark.parametrize("family", [mamba, tiny.llama])
def test_round_reads_the_context_once_and_once_per_candidate_of_others(tmp_path, family):
    tokenizers = {"a": tiny.byte_level(), "b": tiny.metaspace()}
    paths = [tiny.save_tiny(tmp_path / name, tokenizer, family) for name, tokenizer in tokenizers.items()]
    members = [MemberConfig(model=str(path), kv_store="prefill") for path in paths]
    with Ensemble.from_pretrained(*members, strategy="adafuse", speculation="off", max_word_tokens=8) as ensemble:
        before = [member.backend.model.tokens for member in ensemble.members]
        answer = ensemble.generate("The quick brown fox. " * 8, max_new_tokens=24)
        for index, member in enumerate(ensemble.members):
            length = max(answer.usage.prompt_tokens[name] for name in tokenizers) + 80
            bound = sum(length * (1 + len(played.candidates)) + 3 * 3 * 8 for played in answer.rounds)
            assert member.backend.model.tokens - before[index] <= bound
        assert [member.backend.tokens_held() for member in ensemble.members] == [0, 0]
