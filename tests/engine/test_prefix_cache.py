"""Sequences start with the keys and values of others: the distributions are those of fresh passes, and less is read."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adafuse_core.backends.local import LocalBackend
from adafuse_core.engine import store_choice
from adafuse_core.engine.admission import Admission
from adafuse_core.engine.batching import Batcher
from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefix_cache import Beginning, PrefixCache
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store_choice import choose_store
from tests.engine.test_stores import FAMILIES, assert_close, build, fresh, read, stores
from tests.recording import traced

PROMPT = tuple(range(5, 65))  # longer than the sliding windows
KINDS = ("tree", "fork")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def sharing(family):
    """The stores that work with the family and share beginnings."""
    return [store for _, store in stores(family) if store.kind != "prefill"]


def check(store, reference, memo, contexts):
    assert_close(read(store, memo, contexts), torch.stack([fresh(reference, context) for context in contexts]))


@pytest.mark.parametrize("move", [False, True])
def test_adopted_beginnings_give_the_distributions_of_fresh_passes(family, move):
    reference = build(family)
    for store in sharing(family):
        for shared in (60, 41, 34, 12):  # in the answer, in the prompt, at its chunks, inside the sliding windows
            donor = Memo(PROMPT[:50])
            check(store, reference, donor, [(*PROMPT[:50], 1, 2), (*PROMPT[:50], 3)])
            for length in (51, 54, 58, 60):
                read(store, donor, [PROMPT[:length], (*PROMPT[:length], 9)])
                store.commit(donor, PROMPT[:length])
            store.settle(donor)
            memo = Memo((*PROMPT[:shared], 7, 8, 9, 10, 11))
            length = store.reusable(donor, shared)
            assert length > shared - (4 if store.kind == "tree" else 20)
            if not length:
                continue
            store.adopt(memo, donor, length, move=move)
            assert (donor.kv is None) == move
            check(store, reference, memo, [memo.ids, (*memo.ids, 1, 2), (*memo.ids, 3)])
            store.commit(memo, (*memo.ids, 1))
            check(store, reference, memo, [(*memo.ids, 2), (*memo.ids, 4, 5)])
            if not move:  # the donor is as it was
                other = Memo((*PROMPT, 1, 2, 3, 4, 5, 6))
                store.adopt(other, donor, store.reusable(donor, 60), move=False)
                check(store, reference, other, [other.ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("move", [False, True])
@pytest.mark.parametrize("answer", [0, 1, 3, 4])  # tokens after the beginning; four are not part of the trunk
def test_sequence_with_a_beginning_holds_what_was_reserved(kind, move, answer):
    store = choose_store(build("llama"), kind).store
    donor = Memo(PROMPT)
    read(store, donor, [PROMPT])
    read(store, donor, [(*PROMPT, token) for token in range(80)])  # a tree grows, and stays as large
    store.settle(donor)
    heir = Memo((*PROMPT, 7, 8, 9, 1)[: len(PROMPT) + answer])
    request = ReadRequest(heir, [heir.ids, (*heir.ids, 3)])
    length = store.reusable(donor, len(heir.trunk))
    needed = store.tokens_needed(request, length, store.tokens_held(donor) if move else 0)
    store.adopt(heir, donor, length, move=move)
    store.read([request])
    assert length
    assert store.tokens_held(heir) <= needed


@pytest.mark.parametrize(("bound", "reused"), [(295, True), (290, False)])
def test_memory_is_taken_over_only_if_it_fits(bound, reused):
    store = choose_store(build("llama"), "tree").store
    cache = PrefixCache(store, None)
    running, donor, heir = Memo(PROMPT), Memo(PROMPT[:40]), Memo((*PROMPT[:30], *range(80, 90)))
    read(store, running, [PROMPT])
    read(store, donor, [donor.ids, *((*donor.ids, token) for token in range(90))])
    cache.keep(donor)
    request, beginning = ReadRequest(heir, [heir.ids]), Beginning(donor, 30, moves=False)
    held = {memo: store.tokens_held(memo) for memo in (running, donor)}
    assert (held[running], held[donor]) == (124, 168)
    assert held[running] + store.tokens_needed(request, 30) <= bound
    admission = Admission(store, bound, [running, heir], [], cache, {heir: beginning})
    assert admission.admit([request]) == [request]
    assert (heir in admission.moves, donor.kv is not None) == (reused, reused)


def test_reusable_tokens():
    """A tree shares what was read; full attention can be cut anywhere; other layers were copied at a few lengths."""
    expected = {("llama", "tree"): 41, ("llama", "fork"): 41, ("mistral", "fork"): 32, ("qwen3_next", "fork"): 32}
    for (family, kind), tokens in expected.items():
        store = choose_store(build(family), kind, chunk=16).store
        donor = Memo(PROMPT)
        assert store.reusable(donor, 41) == 0
        read(store, donor, [PROMPT])
        assert store.reusable(donor, 41) == tokens, (family, kind)
        store.settle(donor)
        assert store.reusable(donor, 41) == tokens, (family, kind)
        assert store.reusable(donor, len(PROMPT)) >= len(PROMPT) - 4


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_sequences_of_a_pool_share_its_cells(family, monkeypatch):
    monkeypatch.setattr(store_choice, "recorder", lambda _: traced)
    reference, model = build(family), build(family)
    store = choose_store(model, cuda_graphs=True, chunk=16).store
    pool = store._fixed.pool
    donor = Memo(PROMPT)
    read(store, donor, [PROMPT])
    store.settle(donor)
    free = len(pool._free)
    twins = [Memo((*PROMPT[:40], token, 1, 2, 3, 4)) for token in range(3)]
    for memo in twins:
        store.adopt(memo, donor, 40, move=False)
        check(store, reference, memo, [memo.ids, (*memo.ids, 1)])
    assert free - len(pool._free) == sum(store.tokens_held(memo) - 40 for memo in twins)
    donor.restart()
    check(store, reference, twins[0], [(*twins[0].ids, 5)])
    with pytest.raises(IndexError):  # a failed pass drops the sequence's own cells
        store.read([ReadRequest(twins[0], [(*twins[0].ids, 10**6)])])
    for memo in twins:
        check(store, reference, memo, [(*memo.ids, 6)])
        memo.restart()
    del memo
    gc.collect()
    assert len(set(pool._free)) == pool._size - 2
    assert not pool._sharers


def backend(kind="tree", *, family="llama", **options):
    model = build(family, torch.float64)
    return model, LocalBackend(model, choose_store(model, kind, chunk=16), name="a", **options)


def open_session(backend, prompt, namespace=""):
    return backend.open(prompt, window=None, lookup=False, raise_if_cancelled=lambda: None, namespace=namespace)


def answer(backend, prompt, namespace="", length=6):
    """A greedy continuation, and the tokens that were read and reused for it."""
    opened = open_session(backend, prompt, namespace)
    ((*steps,),) = opened.draft([prompt], length, 2, lambda *_: False)
    ids = tuple(step.ids[0] for step in steps)
    opened.score([prompt], [ids])
    opened.commit(prompt + ids)
    opened.close()
    return prompt + ids, opened.tokens()


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_of_a_conversation_reads_only_what_is_new(kind):
    model, remembers = backend(kind)
    _, forgets = backend(kind, max_cached_tokens=0)
    draw, context = random.Random(0), PROMPT
    for turn in range(8):
        before = model.tokens
        written, tokens = answer(remembers, context)
        assert written == answer(forgets, context)[0]
        assert tokens.read == model.tokens - before
        if turn:
            assert tokens.cached >= len(context) - 20 - 5
            assert tokens.read <= 20 + 6 + 5
        context = written + tuple(draw.randrange(99) for _ in range(20))
    assert remembers.tokens_held() == 0
    assert 0 < remembers.tokens_cached() <= 2 * len(context) + 64  # one sequence: the last turn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("together", [False, True])
def test_questions_with_a_common_beginning_read_it_once(kind, together, threads):
    model, remembers = backend(kind)
    questions = [PROMPT + tuple((7 * place + number) % 99 for place in range(10)) for number in range(20)]
    expected = [answer(backend(kind, max_cached_tokens=0)[1], question)[0] for question in questions]
    run, before = threads.map if together else map, model.tokens
    answers = list(run(lambda question: answer(remembers, question), questions))
    assert [written for written, _ in answers] == expected
    waived = 16 * 19 if together else 0  # a request does not wait for so few tokens
    assert sum(tokens.cached for _, tokens in answers) >= 19 * len(PROMPT) - waived
    assert sum(tokens.read for _, tokens in answers) <= len(PROMPT) + 20 * (10 + 6) + waived
    assert model.tokens - before <= len(PROMPT) + 20 * (10 + 6) + waived


def test_namespaces_do_not_share():
    _, remembers = backend()
    assert answer(remembers, PROMPT, "alice")[1].cached == 0
    assert answer(remembers, PROMPT, "bob")[1].cached == 0
    assert answer(remembers, PROMPT, "alice")[1].cached == len(PROMPT) - 4
    remembers.forget("alice")
    assert answer(remembers, PROMPT, "alice")[1].cached == 0
    assert answer(remembers, PROMPT, "bob")[1].cached == len(PROMPT) - 4
    remembers.forget()
    assert remembers.tokens_cached() == 0


def test_switched_off_nothing_is_kept_and_running_requests_share_nothing():
    _, forgets = backend(max_cached_tokens=0)
    first = open_session(forgets, PROMPT)
    first.draft([PROMPT], 3, 2, lambda *_: False)
    assert answer(forgets, PROMPT)[1].cached == 0
    first.close()
    assert answer(forgets, PROMPT)[1].cached == 0
    assert forgets.tokens_cached() == 0


def test_running_request_shares_the_prompt_that_it_has_read():
    _, remembers = backend()
    first = open_session(remembers, PROMPT)
    first.draft([PROMPT], 3, 2, lambda *_: False)
    assert answer(remembers, PROMPT)[1].cached == len(PROMPT) - 4
    first.commit((*PROMPT, 1, 2))
    first.close()


def test_longer_sequence_replaces_the_one_that_it_continues():
    _, remembers = backend()
    written, _ = answer(remembers, PROMPT)
    held = remembers.tokens_cached()
    answer(remembers, written)
    assert remembers.tokens_cached() == held + len(written) - len(PROMPT)
    answer(remembers, PROMPT, length=2)  # a shorter one adds nothing
    assert remembers.tokens_cached() == held + len(written) - len(PROMPT)


def test_least_recently_used_sequences_are_evicted():
    room = 3 * (len(PROMPT) + 64) + 10
    _, remembers = backend(max_cached_tokens=room)
    prompts = [tuple((3 * place + number) % 99 for place in range(60)) for number in range(4)]
    for prompt in prompts[:3]:
        answer(remembers, prompt, length=1)
    answer(remembers, prompts[0], length=1)  # used again
    answer(remembers, prompts[3], length=1)
    assert remembers.tokens_cached() <= room
    cached = [remembers.open(prompt, window=None, lookup=False, raise_if_cancelled=lambda: None) for prompt in prompts]
    for opened, prompt in zip(cached, prompts, strict=True):
        opened.draft([prompt], 1, 2, lambda *_: False)
    assert [opened.tokens().cached > 0 for opened in cached] == [True, False, True, True]
    for opened in cached:
        opened.close()


@pytest.mark.parametrize("kind", KINDS)
def test_running_requests_take_the_room_of_closed_ones(kind, threads):
    model = build("llama", torch.float64)
    choice = choose_store(model, kind, chunk=16, max_kv_tokens=600)
    tight = LocalBackend(model, choice, name="a", max_cached_tokens=600)
    held = []
    store_read = choice.store.read

    def read_and_note(requests):
        store_read(requests)
        held.append(tight.tokens_held() + tight.tokens_cached())

    choice.store.read = read_and_note
    draw = random.Random(0)
    prompts = [PROMPT[: draw.randrange(60)] + tuple(draw.randrange(99) for _ in range(20)) for _ in range(40)]
    _, forgets = backend(kind, max_cached_tokens=0)
    expected = [answer(forgets, prompt)[0] for prompt in prompts]
    assert [written for written, _ in threads.map(lambda prompt: answer(tight, prompt), prompts)] == expected
    assert max(held) <= 600
    assert tight.tokens_held() == 0


def test_long_conversation_takes_its_memory_over_where_there_is_no_room_for_two():
    model = build("llama", torch.float64)
    choice = choose_store(model, "tree", max_kv_tokens=200)
    tight = LocalBackend(model, choice, name="a", max_cached_tokens=200)
    written, _ = answer(tight, PROMPT)
    branch = (*written[:63], 1, 2, 3, 4, 5)  # leaves the kept sequence before its end
    assert answer(tight, branch)[1].cached == 63
    assert answer(tight, (*branch, 9, 9, 9))[1].cached >= 64


def test_request_waits_only_for_an_older_one_that_reads_its_beginning():
    _, remembers = backend()
    batcher: Batcher = remembers._batcher
    older, same, other = (batcher.open(ids) for ids in ((*PROMPT, 1), (*PROMPT, 2), tuple(range(60, 90))))
    requests = [ReadRequest(memo, [memo.ids]) for memo in (older, same, other)]
    found = batcher._cache.beginnings(requests, batcher._last_used)
    assert found == {same: None}
    read(batcher.store, older, [older.ids])
    found = batcher._cache.beginnings(requests, batcher._last_used)
    assert {memo: beginning.length for memo, beginning in found.items()} == {same: len(PROMPT) - 3}


def test_waiting_request_reads_itself_when_the_older_one_is_closed(threads):
    _, remembers = backend()
    opened = open_session(remembers, (*PROMPT, 1))
    opened.close()
    assert threads.submit(answer, remembers, (*PROMPT, 2)).result(10)[1].cached == 0


def test_out_of_memory_frees_closed_sequences_first(monkeypatch):
    _, remembers = backend()
    answer(remembers, PROMPT)
    store = remembers._batcher.store
    tree_read = store.read

    def read_if_there_is_room(requests):
        if remembers.tokens_cached():
            raise torch.OutOfMemoryError("no room")
        tree_read(requests)

    store.read = read_if_there_is_room
    other = tuple(range(90, 30, -1))
    assert answer(remembers, other)[0] == answer(backend(max_cached_tokens=0)[1], other)[0]
    monkeypatch.setattr(remembers, "tokens_cached", lambda: 1)
    with pytest.raises(torch.OutOfMemoryError):  # nothing is left to free
        answer(remembers, PROMPT)
