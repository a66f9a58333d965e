"""Passes in fixed shapes give the distributions of ragged passes, recorded or not, and release their cells."""

from __future__ import annotations

import gc

import pytest
import torch

from adafuse_core.engine import graphs, slots, store_choice
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.pass_shapes import Shape, smallest_shape
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.slots import ZERO_CELL, Pool, PooledMemory
from adafuse_core.engine.store_choice import UnsupportedSetting, choose_store
from tests.engine.test_stores import FAMILIES, PROMPT, assert_close, build, check_distributions, fresh, read
from tests.recording import traced

TREES = [family for family, (_, kind) in FAMILIES.items() if kind == "tree"]


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    """Let the passes of every model be recorded."""
    monkeypatch.setattr(store_choice, "recorder", lambda _: traced)


def recorded(family="llama", record=traced, monkeypatch=None):
    """A model, its store, and the fixed passes of the store."""
    model = build(family)
    if monkeypatch is not None:
        monkeypatch.setattr(store_choice, "recorder", lambda _: record)
    store = choose_store(model, cuda_graphs=True, chunk=16).store
    return model, store, store._fixed


def calls(model):
    """A list with an item for each run of the model in Python."""
    seen = []
    model.module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def free(pool):
    gc.collect()
    return len(set(pool._free))


@pytest.mark.parametrize("family", TREES)
def test_recorded_passes_give_the_distributions_of_fresh_ones(family, record_property):
    model, store, fixed = recorded(family)
    runs, before = calls(model), model.forwards
    count = check_distributions(store, build(family), family, rounds=8)
    assert fixed.problem is None
    assert len(runs) < (model.forwards - before) * 0.75  # the others were replays
    assert count >= 96
    record_property("distributions equal to fresh passes", count)


@pytest.mark.parametrize("family", TREES)
def test_many_sequences_are_one_recorded_pass(family):
    reference = build(family)
    model, store, fixed = recorded(family)
    memos = [Memo(PROMPT[:length]) for length in (40, 3, 25, 11, 30)]
    while waiting := [request for memo in memos if not (request := ReadRequest(memo, [memo.ids])).is_answered()]:
        store.read(waiting)
    for turn in range(5):
        before, runs = model.forwards, calls(model)
        requests = [
            ReadRequest(memo, [(*memo.ids, turn + place), *([(*memo.ids, 90)] if place % 2 else [])])
            for place, memo in enumerate(memos)
        ]
        store.read(requests)
        assert model.forwards == before + 1
        assert len(runs) == (0 if turn > 2 else len(runs))
        for request in requests:
            for context in request.contexts:
                row = request.memo.get(context)
                assert_close(row.table[row.row], fresh(reference, context))
            store.commit(request.memo, request.contexts[0])
    assert fixed.problem is None


def test_least_recently_used_shapes_are_dropped(monkeypatch):
    monkeypatch.setattr("adafuse_core.engine.fixed_passes._MAX_SHAPES", 2)
    _, store, fixed = recorded()
    memo = Memo(PROMPT)
    read(store, memo, [PROMPT])
    for count in (1, 3, 9, 30, 2):
        ends = [(*PROMPT, token) for token in range(count)]
        assert_close(read(store, memo, ends), torch.stack([fresh(build("llama"), end) for end in ends]))
        memo.restart()
        assert len(fixed._passes) <= 2


def test_pass_too_large_for_any_shape_is_ragged():
    _, store, fixed = recorded()
    memo = Memo(PROMPT)
    ends = [(*PROMPT, first, second) for first in range(9) for second in range(9)]
    read(store, memo, [PROMPT])
    before = dict(fixed._passes)
    assert_close(read(store, memo, ends), torch.stack([fresh(build("llama"), end) for end in ends]))
    assert fixed._passes == before
    assert_close(read(store, memo, [(*PROMPT, 1, 1, 1)])[0], fresh(build("llama"), (*PROMPT, 1, 1, 1)))


def test_recordings_are_dropped_when_the_pool_grows(monkeypatch):
    monkeypatch.setattr("adafuse_core.engine.slots._FIRST_CELLS", 256)
    _, store, fixed = recorded()
    reference = build("llama")
    memos = [Memo(PROMPT[:30]) for _ in range(12)]  # 94 cells each
    context = memos[0].ids
    for turn, memo in enumerate(memos):
        read(store, memo, [memo.ids])
        context = (*context, turn)
        for _ in range(3):  # the first sequence continues beside the new ones
            assert_close(read(store, memos[0], [context])[0], fresh(reference, context))
            memos[0].node(context).distribution = None
        store.commit(memos[0], context)
    assert fixed.pool.moves
    for memo in memos[1:]:
        assert_close(read(store, memo, [(*memo.ids, 7)])[0], fresh(reference, (*memo.ids, 7)))


def test_pool_that_can_not_grow_fails_only_the_requests_that_need_it(monkeypatch):
    monkeypatch.setattr("adafuse_core.engine.slots._FIRST_CELLS", 256)
    _, store, fixed = recorded()
    reference = build("llama")
    first = Memo(PROMPT[:30])
    read(store, first, [first.ids])
    enlarged, calls_left = slots._enlarged, [1]

    def scarce(*arguments):
        calls_left[0] -= 1
        if calls_left[0] < 0:
            raise torch.OutOfMemoryError("no memory")
        return enlarged(*arguments)

    others = [Memo(PROMPT[:9]) for _ in range(3)]
    with monkeypatch.context() as short:
        short.setattr(slots, "_enlarged", scarce)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                store.read([ReadRequest(other, [other.ids]) for other in others])
            calls_left[0] = 1
        assert_close(read(store, first, [(*first.ids, 7)])[0], fresh(reference, (*first.ids, 7)))
    assert {len(keys) for keys, _ in fixed.pool.layers.values()} >= {256}
    for other in others:
        assert_close(read(store, other, [(*other.ids, 8)])[0], fresh(reference, (*other.ids, 8)))
    del others, other, first
    assert free(fixed.pool) == fixed.pool._size - 2


def test_short_sequences_are_not_padded_to_a_much_longer_one():
    assert smallest_shape([1] * 3, [3000, 40, 40]) == Shape(4, 1, 3072)
    assert smallest_shape([1] * 9, [30_000, *[40] * 8]) is None
    assert smallest_shape([1] * 9, [400, *[40] * 8]) == Shape(16, 1, 512)
    assert smallest_shape([1], [200_000]) == Shape(1, 1, 2**18)
    assert smallest_shape([1], [300_000]) is None


def test_cells_are_released_however_a_sequence_ends():
    _, store, fixed = recorded()
    read(store, Memo(PROMPT), [PROMPT])  # the pool is empty before the first pass
    everything = free(fixed.pool)
    memos = [Memo(PROMPT) for _ in range(3)]
    for memo in memos:
        read(store, memo, [(*PROMPT, 1, 2), (*PROMPT, 3)])
    assert free(fixed.pool) < everything
    memos[0].restart()
    with pytest.raises(IndexError):
        store.read([ReadRequest(memos[1], [(*PROMPT, 10**6)])])
    del memos[2], memo
    assert free(fixed.pool) == everything


def test_nan_does_not_outlive_a_failed_pass():
    model, reference = build("llama"), build("llama")
    head = model.module.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # no longer shared with the embeddings
    store = choose_store(model, cuda_graphs=True).store
    pool, memo = store._fixed.pool, Memo(PROMPT)
    read(store, memo, [PROMPT])
    embedding = model.module.get_input_embeddings().weight
    with torch.no_grad():
        kept = embedding[90].clone()
        embedding[90] = float("nan")
        for turn in range(7):
            read(store, memo, [(*memo.ids, turn)])
            store.commit(memo, (*memo.ids, turn))
        with pytest.raises(FloatingPointError):
            read(store, memo, [(*memo.ids, 90)])
        embedding[90] = kept
    for _ in range(3):
        others = [Memo(PROMPT[:length]) for length in (40, 20)]
        for other in others:
            ends = [(*other.ids, 5), (*other.ids, 90, 8)]
            assert_close(read(store, other, ends), torch.stack([fresh(reference, end) for end in ends]))
    for keys, values in pool.layers.values():
        assert not keys[ZERO_CELL].any()
        assert not values[ZERO_CELL].any()


def test_model_that_can_not_be_recorded_runs_without_recordings(monkeypatch, caplog):
    def record(_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(store_choice, "recorder", lambda _: record)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnsupportedSetting, match="operation not permitted"):
        choose_store(build("llama"), cuda_graphs=True)
    _, store, fixed = recorded(monkeypatch=monkeypatch)  # now with a shape that can't be recorded later
    fixed._record = record
    memo = Memo(PROMPT)
    reference = build("llama")
    for turn in range(6):
        ends = [(*memo.ids, token) for token in range(turn, turn + 20)]
        assert_close(read(store, memo, ends), torch.stack([fresh(reference, end) for end in ends]))
        store.commit(memo, ends[0])
    assert "passes are no longer recorded" in caplog.text
    assert isinstance(fixed.problem, RuntimeError)


def test_wrong_replay_is_found(monkeypatch):
    def record(_):
        return lambda: None  # a replay that leaves the last logits unchanged

    monkeypatch.setattr(store_choice, "recorder", lambda _: record)
    with pytest.raises(UnsupportedSetting, match="differ"):
        choose_store(build("llama"), cuda_graphs=True)


def test_cuda_graphs_are_refused_where_they_do_not_work(monkeypatch):
    with pytest.raises(UnsupportedSetting, match="need a token tree; no tree"):
        choose_store(build("lfm2"), cuda_graphs=True)
    with pytest.raises(UnsupportedSetting, match="kv_store='fork' is not a token tree"):
        choose_store(build("llama"), "fork", cuda_graphs=True)
    monkeypatch.setattr(store_choice, "recorder", graphs.recorder)
    with pytest.raises(UnsupportedSetting, match="the model runs on cpu"):
        choose_store(build("llama"), cuda_graphs=True)
    assert str(choose_store(build("llama"))) == "tree (it reproduces fresh passes)"


def test_choice_mentions_cuda_graphs():
    assert str(choose_store(build("llama"), cuda_graphs=True)) == "tree with CUDA graphs (it reproduces fresh passes)"
    assert str(choose_store(build("llama"), "tree", cuda_graphs=True)) == "tree with CUDA graphs (as configured)"


@pytest.mark.parametrize("family", TREES)
def test_recorded_pass_reads_no_values_and_mixes_no_devices(family):
    """The meta device stands for a GPU: it has no values to read, and refuses tensors of other devices."""
    model = build(family)
    choose_store(model, "tree")
    model.module.bfloat16().to("meta")
    device = torch.device("meta")
    seen = []

    def record(run):
        run()
        return lambda: seen.append(1)

    fixed = FixedPasses(model, Pool(device), record)
    sequence = _Sequence(PooledMemory(fixed.pool))
    for _ in range(3):
        logits = fixed.read([sequence, sequence])
        assert logits.shape == (6, model.vocab_size)
        assert logits.device == device
    assert fixed.problem is None
    assert seen == [1, 1]


class _Sequence:
    def __init__(self, memory):
        self.tokens, self.positions = [3, 4, 5], [0, 1, 2]
        self._memory = memory
        memory.grow(9)

    def written_cells(self):
        return self._memory.cells[:3]

    def visible_cells(self):
        return self._memory.cells[:3]

    def mask(self, window):
        return torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1) > 0, float("-inf")).numpy()
