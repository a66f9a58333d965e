"""Requests of many threads share a model's passes and memory without affecting each other."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM

from adafuse_core import ContextOverflowError, Ensemble, MemberError
from adafuse_core.backends.local import LocalBackend
from adafuse_core.engine.batching import IDLE_SECONDS, POLL_SECONDS, Batcher, Closed
from adafuse_core.engine.device_turns import MOST_SECONDS
from adafuse_core.engine.forward import Model
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import SPARE_TOKENS
from adafuse_core.engine.store_choice import StoreChoice, choose_store
from adafuse_core.engine.tree import TreeStore
from tests import tiny
from tests.engine.driven_clock import SOON, DrivenClock


class Notes:
    """A store that computes nothing and records the requests of each pass."""

    kind = "notes"

    def __init__(self):
        self.passes = []
        self.threads = []
        self.during = lambda memos: None  # called in each pass

    def read(self, requests):
        self.passes.append([request.memo for request in requests])
        self.threads.append(threading.get_ident())
        self.during([request.memo for request in requests])
        for request in requests:
            for node in request.ends():
                node.distribution = "known"
            request.memo.kv = len(request.memo.ids) + SPARE_TOKENS

    def commit(self, memo, context):
        memo.commit(context)

    def unread(self, memo):
        return 0

    def settle(self, memo):
        memo.restart()

    def reusable(self, donor, length):
        return 0

    def tokens_held(self, memo):
        return memo.kv or 0

    def tokens_needed(self, request):
        return len(request.memo.ids) + SPARE_TOKENS


class Gate:
    """Holds up the next pass until it is opened."""

    def __init__(self, store):
        self.entered, self.opened = threading.Event(), threading.Event()
        self.read, store.read = store.read, self.wait_and_read

    def wait_and_read(self, requests):
        if not self.entered.is_set():
            self.entered.set()
            assert self.opened.wait(SOON)
        self.read(requests)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def clock():
    driven = DrivenClock()
    yield driven
    driven.stop()


def never():
    """The check of a request that is not cancelled."""


def ask_for(batcher, memo, *contexts, check=never):
    """Have contexts answered, within a call as sessions do."""
    with batcher.call(memo):
        request = ReadRequest(memo, contexts or [memo.ids])
        batcher.read(request, check)
    return request


def queued(threads, batcher, memos):
    """Requests that wait in their own threads; returns once all are in the queue."""
    arrived = threading.Semaphore(0)
    running = [threads.submit(ask_for, batcher, memo, check=arrived.release) for memo in memos]
    for _ in memos:
        assert arrived.acquire(timeout=SOON)
    return running


def wait_until(holds):
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_lone_request_runs_in_its_own_thread(threads):
    batcher = Batcher(store := Notes())
    memo = batcher.open((1, 2))
    ask_for(batcher, memo)
    assert store.threads == [threading.get_ident()]
    threads.submit(ask_for, batcher, memo, (1, 2, 3)).result(SOON)
    assert store.threads[1] != threading.get_ident()


def test_lone_request_does_not_wait(clock):
    batcher = Batcher(store := Notes(), clock=clock)
    store.during = lambda memos: clock.advance(0.02)
    idle = [batcher.open((token,)) for token in range(5)]
    memo = batcher.open((9,))
    for length in range(10):
        ask_for(batcher, memo, (9,) * (length + 1))
    assert clock.waits == 0
    assert store.passes == [[memo]] * 10
    assert all(known.kv is None for known in idle)


def test_requests_that_come_while_a_pass_runs_share_the_next_one(threads):
    batcher = Batcher(store := Notes())
    gate = Gate(store)
    first, *others = [batcher.open((token, 1)) for token in range(6)]
    running = [threads.submit(ask_for, batcher, first)]
    assert gate.entered.wait(SOON)
    running += queued(threads, batcher, others)
    gate.opened.set()
    assert all(future.result(SOON).is_answered() for future in running)
    assert store.passes == [[first], others]


def test_requests_that_read_repeatedly_share_every_pass(threads, clock):
    batcher = Batcher(store := Notes(), clock=clock)
    store.during = lambda memos: clock.advance(0.01)
    memos = [batcher.open((token,)) for token in range(8)]

    def work(memo):
        with batcher.call(memo):
            for length in range(20):
                batcher.read(ReadRequest(memo, [(*memo.ids, *range(length))]), never)

    with batcher.turns.hold([1], never):  # no pass begins before all have asked
        running = [threads.submit(work, memo) for memo in memos]
        wait_until(lambda: len(batcher._queue) == 8)
    for future in running:
        future.result(SOON)
    assert store.passes == [memos] * 20


@pytest.mark.parametrize(("pass_seconds", "patience"), [(0.02, 0.04), (1.0, MOST_SECONDS)])
def test_pass_waits_for_answered_requests_for_two_passes_or_a_limit(threads, clock, pass_seconds, patience):
    batcher = Batcher(store := Notes(), clock=clock)
    store.during = lambda memos: clock.advance(pass_seconds)
    ask_for(batcher, batcher.open((1, 2)))  # in this thread, which stays away then
    waiting = threads.submit(ask_for, batcher, batcher.open((3, 4)))
    clock.wait_for_sleepers(1)
    clock.advance(patience - 0.001)
    clock.wait_for_sleepers(1)
    assert len(store.passes) == 1
    clock.advance(0.002)
    assert waiting.result(SOON).is_answered()


def test_bad_request_fails_alone(threads):
    batcher = Batcher(store := Notes())
    gate = Gate(store)
    first, *others = [batcher.open((token, 1)) for token in range(6)]
    running = [threads.submit(ask_for, batcher, first)]
    assert gate.entered.wait(SOON)

    def fail(memos):
        if others[2] in memos:
            raise ValueError("bad")

    running += queued(threads, batcher, others)
    store.during = fail
    gate.opened.set()
    errors = [future.exception(SOON) for future in running]
    assert [str(error) for error in errors] == ["None", "None", "None", "bad", "None", "None"]
    assert others in store.passes
    store.during = lambda memos: None
    assert ask_for(batcher, others[2]).is_answered()


def test_failed_pass_does_not_change_the_scores_of_other_requests(threads):
    model = llama()
    backend = LocalBackend(model, choose_store(model), name="a")
    prompts = [tuple(range(3, 3 + length)) for length in (9, 5, 14)]
    expected = [backend_logprobs(backend, prompt) for prompt in prompts]
    bad = (1, 2, 10**6)
    for _ in range(5):
        running = [threads.submit(backend_logprobs, backend, prompt) for prompt in (*prompts, bad)]
        *good, failed = [future.exception(SOON) or future.result() for future in running]
        assert good == [pytest.approx(row, abs=1e-4) for row in expected]
        assert isinstance(failed, IndexError)
    assert backend.tokens_held() == 0


def test_cancelled_request_leaves_while_a_pass_runs(threads, clock):
    batcher = Batcher(store := Notes(), clock=clock)
    gate = Gate(store)
    first, cancelled, other = (batcher.open((token, 1)) for token in range(3))
    running = threads.submit(ask_for, batcher, first)
    assert gate.entered.wait(SOON)
    cancel = threading.Event()

    def check():
        if cancel.is_set():
            raise InterruptedError

    waiting = threads.submit(ask_for, batcher, cancelled, check=check)
    kept = threads.submit(ask_for, batcher, other)
    clock.wait_for_sleepers(2)
    cancel.set()
    clock.advance(POLL_SECONDS)
    assert isinstance(waiting.exception(SOON), InterruptedError)
    assert not running.done()
    gate.opened.set()
    assert running.result(SOON).is_answered()
    assert clock.result_of(kept).is_answered()
    assert all(cancelled not in memos for memos in store.passes)


def test_interrupt_in_the_thread_that_runs_a_pass_leaves_the_others_alive(threads):
    batcher = Batcher(store := Notes())
    gate = Gate(store)
    first, *others = [batcher.open((token, 1)) for token in range(4)]

    def interrupt(memos):
        if first in memos:
            raise KeyboardInterrupt

    store.during = interrupt
    running = threads.submit(ask_for, batcher, first)
    assert gate.entered.wait(SOON)
    waiting = queued(threads, batcher, others)
    gate.opened.set()
    assert isinstance(running.exception(SOON), KeyboardInterrupt)
    assert all(future.result(SOON).is_answered() for future in waiting)


def test_waiting_requests_fail_when_the_model_is_freed(threads):
    batcher = Batcher(store := Notes())
    gate = Gate(store)
    first, *others = [batcher.open((token, 1)) for token in range(4)]
    running = threads.submit(ask_for, batcher, first)
    assert gate.entered.wait(SOON)
    waiting = queued(threads, batcher, others)
    shutting = threads.submit(batcher.shut)
    assert all(isinstance(future.exception(SOON), Closed) for future in waiting)
    assert not shutting.done()  # the pass is still running
    gate.opened.set()
    shutting.result(SOON)
    assert isinstance(running.exception(SOON), Closed | None)
    with pytest.raises(Closed):
        ask_for(batcher, first, (7, 7))
    with pytest.raises(Closed):
        batcher.commit(first, (7, 7))
    assert batcher.tokens_held() == 0


def test_request_that_waits_for_others_fails_when_the_model_is_freed(threads, clock):
    batcher = Batcher(store := Notes(), clock=clock)
    store.during = lambda memos: clock.advance(MOST_SECONDS)  # so that it is worth to wait for others
    ask_for(batcher, batcher.open((1, 2)))  # in this thread, which may ask again at any moment
    waiting = threads.submit(ask_for, batcher, batcher.open((5, 6)))
    clock.wait_for_sleepers(1)
    batcher.shut()
    for seconds in (MOST_SECONDS, POLL_SECONDS):  # for others, and for room
        clock.wait_for_sleepers(1)
        clock.advance(seconds)
    assert isinstance(waiting.exception(SOON), Closed)
    assert len(store.passes) == 1


# Models that share a device take turns.


def two_in_turn(**options):
    batchers = [Batcher(Notes(), **options), Batcher(Notes(), **options)]
    batchers[1].turns = batchers[0].turns
    return batchers


def test_models_that_share_a_device_do_not_run_at_the_same_time(threads):
    batchers, running, most = two_in_turn(), [], []

    def note(memos):
        running.append(memos)
        most.append(len(running))
        time.sleep(0.002)
        running.pop()

    for batcher in batchers:
        batcher.store.during = note

    def work(number):
        for step in range(10):
            batcher = batchers[(number + step) % 2]
            memo = batcher.open((number, step))
            ask_for(batcher, memo)
            batcher.close(memo)

    list(threads.map(work, range(8)))
    assert max(most) == 1


def test_request_that_waits_for_another_models_pass_can_be_cancelled(threads, clock):
    batchers = two_in_turn(clock=clock)
    gate = Gate(batchers[0].store)
    running = threads.submit(ask_for, batchers[0], batchers[0].open((1, 2)))
    assert gate.entered.wait(SOON)
    cancel = threading.Event()

    def check():
        if cancel.is_set():
            raise InterruptedError

    waiting = threads.submit(ask_for, batchers[1], memo := batchers[1].open((3, 4)), check=check)
    clock.wait_for_sleepers(1)
    cancel.set()
    clock.advance(MOST_SECONDS)
    assert isinstance(waiting.exception(SOON), InterruptedError)
    assert not running.done()
    gate.opened.set()
    running.result(SOON)
    assert batchers[1].store.passes == []
    assert clock.result_of(threads.submit(ask_for, batchers[1], memo)).is_answered()


def test_interrupt_while_waiting_for_another_models_pass_leaves_the_device_free(threads, clock):
    batchers = two_in_turn(clock=clock)
    gate = Gate(batchers[0].store)
    running = threads.submit(ask_for, batchers[0], batchers[0].open((1, 2)))
    assert gate.entered.wait(SOON)
    main, interrupted = threading.main_thread().ident, threading.Event()

    def raise_once(*_):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt():
        clock.wait_for_sleepers(1)
        while not interrupted.wait(0.01):  # a signal that comes just before a thread sleeps does not wake it
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_once)
    try:
        interrupting = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask_for(batchers[1], batchers[1].open((3, 4)))
        interrupting.result(SOON)
    finally:
        signal.signal(signal.SIGUSR1, before)
    gate.opened.set()
    running.result(SOON)
    for batcher in batchers:
        assert clock.result_of(threads.submit(ask_for, batcher, batcher.open((5, 6)))).is_answered()


class Growing:
    """A queue of requests that grows when it was looked at."""

    def __init__(self, *lengths):
        self.lengths = list(lengths)

    def __len__(self):
        return self.lengths.pop(0) if len(self.lengths) > 1 else self.lengths[0]


def test_queues_that_grow_while_they_wait_do_not_deadlock():
    for _ in range(10):
        turns, free = two_in_turn()[0].turns, threading.Event()

        def hold(turns=turns, free=free):
            with turns.hold([1], lambda: None):
                assert free.wait(SOON)

        def take(waiting, turns=turns):
            with turns.hold(waiting, lambda: None):
                pass

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        wait_until(lambda turns=turns: turns._taken)
        takers = []
        for waiting in (Growing(1, 3), Growing(2)):  # the first sees that the second comes first, and then grows
            takers.append(threading.Thread(target=take, args=(waiting,), daemon=True))
            takers[-1].start()
            wait_until(lambda turns=turns, takers=takers: len(turns._queues) == len(takers))
        free.set()
        for taker in takers:
            taker.join(2)
            assert not taker.is_alive()


# Of a real model.


def llama(config=tiny.llama):
    torch.manual_seed(0)
    return Model(AutoModelForCausalLM.from_config(config(99)))


def session(backend, prompt, check=never):
    return contextlib.closing(backend.open(prompt, window=None, lookup=False, raise_if_cancelled=check))


def backend_logprobs(backend, prompt):
    with session(backend, prompt) as opened:
        return opened.score([prompt, prompt], [(1,), (2, 3)])[1]


@pytest.mark.parametrize("when", ["draft", "score", "commit"])
def test_session_whose_model_was_freed_says_so(when):
    model = llama()
    backend = LocalBackend(model, choose_store(model), name="a")
    with session(backend, (1, 2, 3)) as opened:
        opened.draft([(1, 2, 3)], 3, 1, lambda *_: False)
        backend.close()
        work = {
            "draft": lambda: opened.draft([(1, 2, 3)], 3, 1, lambda *_: False),
            "score": lambda: opened.score([(1, 2, 3)], [(4,)]),
            "commit": lambda: opened.commit((1, 2, 3, 4)),
        }
        with pytest.raises(MemberError, match="freed by close"):
            work[when]()


def test_score_whose_model_is_freed_after_its_pass_says_so(monkeypatch):
    model = llama()
    backend = LocalBackend(model, choose_store(model), name="a")
    answer = Batcher.read

    def answer_and_close(self, request, check):
        answer(self, request, check)
        backend.close()

    monkeypatch.setattr(Batcher, "read", answer_and_close)
    with session(backend, (1, 2, 3)) as opened, pytest.raises(MemberError, match="freed by close"):
        opened.score([(1, 2, 3)], [(4, 5)])


@pytest.mark.parametrize("kind", ["tree", "fork"])
def test_interrupt_inside_a_model_does_not_change_the_scores_of_other_requests(threads, kind):
    model = llama()
    backend = LocalBackend(model, choose_store(model, kind, chunk=16), name="a", max_cached_tokens=0)
    prompts = [tuple(range(first, first + 50)) for first in (1, 11, 21, 31)]
    expected = [backend_logprobs(backend, prompt) for prompt in prompts]
    calls = []

    def interrupt(*_):
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt

    hook = model.module.model.layers[1].register_forward_pre_hook(interrupt)  # when one layer has grown already
    running = [threads.submit(backend_logprobs, backend, prompt) for prompt in prompts]
    outcomes = [future.exception(SOON) or future.result() for future in running]
    hook.remove()
    assert sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes) == 1
    for outcome, row in zip(outcomes, expected, strict=True):
        assert isinstance(outcome, KeyboardInterrupt) or outcome == pytest.approx(row, abs=1e-3)
    assert backend.tokens_held() == 0


def test_score_is_complete_when_a_shared_pass_fails(threads):
    model = llama()
    choice = choose_store(model)
    backend = LocalBackend(model, choice, name="a")
    prompt = tuple(range(3, 12))
    expected = backend_logprobs(backend, prompt)
    with session(backend, prompt) as opened:
        opened.score([prompt], [(1, 7)])  # so that a part of what is wanted is known
        gate = Gate(choice.store)
        running = [threads.submit(backend_logprobs, backend, (5, 6))]
        assert gate.entered.wait(SOON)
        good = threads.submit(opened.score, [prompt, prompt], [(1, 7), (2, 3)])
        bad = threads.submit(backend_logprobs, backend, (1, 10**6))
        wait_until(lambda: len(backend._batcher._queue) == 3)
        gate.opened.set()
        assert isinstance(bad.exception(SOON), IndexError)
        assert good.result(SOON)[1] == pytest.approx(expected, abs=1e-4)
        running[0].result(SOON)


def test_score_is_complete_when_its_sequence_is_evicted(threads):
    model = llama()
    choice = choose_store(model, max_kv_tokens=3 * SPARE_TOKENS)
    backend = LocalBackend(model, choice, name="a")
    prompt, other = tuple(range(3, 12)), tuple(range(60))
    expected = backend_logprobs(backend, prompt)
    with session(backend, other) as older, session(backend, prompt) as opened, session(backend, (5,)) as third:
        opened.score([prompt], [(1, 7)])
        gate = Gate(choice.store)
        running = threads.submit(third.score, [(5,)], [(1,)])
        assert gate.entered.wait(SOON)
        scores = threads.submit(opened.score, [prompt, prompt], [(1, 7), (2, 3)])
        first = threads.submit(older.score, [other], [(1,)])
        wait_until(lambda: len(backend._batcher._queue) == 3)
        gate.opened.set()
        running.result(SOON)
        third.close()
        first.result(SOON)
        older.close()
        assert scores.result(SOON)[1] == pytest.approx(expected, abs=1e-4)


def test_long_prompt_delays_others_by_one_chunk_at_most(threads):
    model = llama(tiny.long_llama)
    store = choose_store(model, "tree", chunk=64).store
    batcher = Batcher(store)
    passes, tokens, read = [], [], store.read

    def read_and_note(requests):
        passes.append([request.memo for request in requests])
        before = model.tokens
        read(requests)
        tokens.append(model.tokens - before)

    store.read = read_and_note
    long, short = batcher.open(tuple(index % 99 for index in range(4000))), batcher.open((1, 2, 3))
    ask_for(batcher, short)
    reading = threads.submit(ask_for, batcher, long)
    wait_until(lambda: len(passes) > 2)
    for token in range(5):
        seen = []
        ask_for(batcher, short, (*short.ids, token), check=lambda seen=seen: seen.append(len(passes)))
        first = seen[0]  # passes that had begun when it asked
        assert any(short in memos for memos in passes[first : first + 2])
    assert not reading.done()
    assert reading.result(SOON).is_answered()
    assert max(tokens) <= 64 + 4 + 1  # the last tokens of a prompt are read with the first branch


def test_prompts_read_at_the_same_time_share_chunks(threads):
    model = llama()
    backend = LocalBackend(model, StoreChoice(store=TreeStore(model, chunk=64)), name="a")
    choose_store(model, "tree")  # its attention
    prompts = [tuple(range(1, length)) for length in (90, 60, 30, 99)]
    start = model.forwards
    for prompt in prompts:
        backend_logprobs(backend, prompt)
    alone = model.forwards - start
    backend_logprobs(backend, prompts[0])
    started = threading.Barrier(4)

    def work(prompt):
        started.wait(SOON)
        return backend_logprobs(backend, prompt)

    start = model.forwards
    list(threads.map(work, prompts))
    assert model.forwards - start <= alone


# Memory with a bound.


def held_in_passes(store, batcher):
    """Makes the store note, after each pass, how much is held."""
    held = []
    store.during = lambda memos: time.sleep(0.001)
    read = store.read

    def read_and_note(requests):
        read(requests)
        held.append(sum(map(store.tokens_held, list(batcher._last_used))))

    store.read = read_and_note
    return held


def one_by_one(batcher, memo, steps):
    """A sequence that is read, committed and read again."""
    for step in range(steps):
        ask_for(batcher, memo)
        batcher.commit(memo, (*memo.ids, step))
    batcher.close(memo)


def test_memory_held_stays_within_the_bound(threads):
    store = Notes()
    batcher = Batcher(store, max_kv_tokens=3 * (SPARE_TOKENS + 30))
    held = held_in_passes(store, batcher)
    draw = random.Random(0)
    memos = [batcher.open(tuple(range(draw.randrange(1, 100)))) for _ in range(24)]
    list(threads.map(lambda memo: one_by_one(batcher, memo, 5), memos))
    assert max(held) <= batcher.max_kv_tokens
    assert max(map(len, store.passes)) >= 2
    assert batcher.tokens_held() == 0


def test_memory_held_of_a_model_stays_within_the_bound(threads):
    model = llama()
    backend = LocalBackend(model, choose_store(model, "tree", max_kv_tokens=300), name="a")
    held = []

    def work(seed):
        draw = random.Random(seed)
        ids = tuple(draw.randrange(99) for _ in range(draw.randrange(5, 60)))
        with session(backend, ids) as opened:
            for _ in range(6):
                branches = [(*ids, token, *range(draw.randrange(8))) for token in range(4)]
                opened.draft(branches, 4, 1, lambda *_: held.append(backend.tokens_held()))
                ids = branches[1]
                opened.commit(ids)

    list(threads.map(work, range(12)))
    assert backend.tokens_held() == 0
    assert max(held) <= 300


def full(clock):
    """A batcher whose memory one sequence fills, which is in use; and that sequence, and its store."""
    batcher = Batcher(store := Notes(), max_kv_tokens=SPARE_TOKENS + 10, clock=clock)
    memo = batcher.open((1,) * 8)
    ask_for(batcher, memo)
    return batcher, memo, store


def test_requests_without_room_run_once_others_end(threads, clock):
    batcher, first, store = full(clock)
    with batcher.call(first):
        memos = [batcher.open((2,) * 8), batcher.open((3,) * 8)]
        waiting = queued(threads, batcher, memos)
        for _ in range(20):
            clock.wait_for_sleepers(2)
            clock.advance(POLL_SECONDS)
        clock.wait_for_sleepers(2)
        assert store.passes == [[first]]
    batcher.close(first)
    assert waiting[0].result(SOON).is_answered()
    batcher.close(memos[0])
    assert waiting[1].result(SOON).is_answered()


def test_requests_without_room_check_once_per_poll(threads, clock):
    batcher, first, store = full(clock)
    with batcher.call(first):
        waiting = queued(threads, batcher, [batcher.open((token,) * 8) for token in range(3)])
        clock.wait_for_sleepers(3)
        looks, tokens_held = [], store.tokens_held
        store.tokens_held = lambda memo: looks.append(memo) or tokens_held(memo)
        for turn in range(10):
            clock.advance(0.4 * POLL_SECONDS)  # too early to look again
            clock.wait_for_sleepers(3)
            assert len(looks) == turn * 4
            clock.advance(0.6001 * POLL_SECONDS)
            clock.wait_for_sleepers(3)
            assert len(looks) == (turn + 1) * 4  # one of them looks, once, at all four sequences
    batcher.close(first)
    for future in waiting:
        assert clock.result_of(future).is_answered()


def test_idle_sequence_is_evicted_and_read_again(threads, clock):
    batcher, idle, store = full(clock)
    other = batcher.open((2,) * 8)
    waiting = threads.submit(ask_for, batcher, other)
    clock.wait_for_sleepers(1)
    clock.advance(IDLE_SECONDS)
    clock.wait_for_sleepers(1)
    assert store.passes == [[idle]]
    clock.advance(POLL_SECONDS)
    assert waiting.result(SOON).is_answered()
    assert store.tokens_held(idle) == 0
    batcher.close(other)
    assert ask_for(batcher, idle).is_answered()
    assert store.passes == [[idle], [other], [idle]]


def test_sequence_in_use_is_not_evicted(threads, clock):
    batcher, busy, store = full(clock)
    with batcher.call(busy):
        (waiting,) = queued(threads, batcher, [batcher.open((2,) * 8)])
        for _ in range(3):
            clock.wait_for_sleepers(1)
            clock.advance(10 * IDLE_SECONDS)
        clock.wait_for_sleepers(1)
        assert store.tokens_held(busy)
        assert store.passes == [[busy]]
    batcher.close(busy)
    assert waiting.result(SOON).is_answered()


def test_new_sequence_does_not_overtake_an_older_one_that_waits_for_room(threads, clock):
    batcher = Batcher(store := Notes(), max_kv_tokens=5 * SPARE_TOKENS, clock=clock)
    holders = [batcher.open((number,) * 8) for number in range(3)]
    with contextlib.ExitStack() as calls:
        for memo in holders:
            ask_for(batcher, memo)
            calls.enter_context(batcher.call(memo))
        old, new = batcher.open((8,) * (2 * SPARE_TOKENS + 40)), batcher.open((9,) * 8)
        waiting = [threads.submit(ask_for, batcher, old)]
        clock.wait_for_sleepers(1)
        waiting.append(threads.submit(ask_for, batcher, new))  # there is room for this one
        clock.wait_for_sleepers(2)
        going_on = threads.submit(batcher.read, ReadRequest(holders[0], [(*holders[0].ids, 5)]), never)
        going_on.result(SOON)  # at once, though the leader found no room for its own request
        assert clock.now() == 0
        clock.wait_for_sleepers(2)
        assert store.passes == [*([memo] for memo in holders), [holders[0]]]
    for memo in holders:
        batcher.close(memo)
    for future in waiting:
        future.result(SOON)
    assert store.passes[4:] == [[old, new]]


def test_older_request_evicts_waiting_younger_ones_youngest_first(threads, clock):
    batcher = Batcher(store := Notes(), max_kv_tokens=5 * SPARE_TOKENS, clock=clock)
    old = batcher.open((9,) * 60)  # needs 124 of 320 tokens
    younger = [batcher.open((number,) * 8) for number in range(3)]  # hold 72 each
    with contextlib.ExitStack() as calls:
        for memo in younger:
            ask_for(batcher, memo)
            calls.enter_context(batcher.call(memo))
        root = younger[0].root
        with batcher.turns.hold([1], never):
            requests = [ReadRequest(old, [old.ids]), *(ReadRequest(memo, [(*memo.ids, 5)]) for memo in younger[:2])]
            waiting = [threads.submit(batcher.read, request, never) for request in requests]
            wait_until(lambda: len(batcher._queue) == 3)
        for future in waiting[:2]:
            future.result(SOON)
        clock.wait_for_sleepers(1)
        assert store.passes[3:] == [[old, younger[0]]]
        assert younger[0].root is root  # still in memory
        assert [store.tokens_held(memo) for memo in younger] == [72, 0, 72]  # the third request was not waiting
        batcher.close(old)
        waiting[2].result(SOON)
    assert store.passes[4:] == [[younger[1]]]


def test_lone_sequence_may_exceed_the_bound(clock):
    batcher = Batcher(Notes(), max_kv_tokens=SPARE_TOKENS, clock=clock)
    assert ask_for(batcher, batcher.open((1,) * 100)).is_answered()
    assert batcher.tokens_held() == SPARE_TOKENS + 100
    assert clock.waits == 0


def test_requests_that_wait_for_each_others_memory_do_not_deadlock(threads, clock):
    batchers = [Batcher(Notes(), max_kv_tokens=SPARE_TOKENS + 10, clock=clock) for _ in range(2)]
    both_hold = threading.Barrier(2)

    def work(order):
        memos = [batchers[index].open((1,) * 8) for index in order]
        ask_for(batchers[order[0]], memos[0])
        both_hold.wait(SOON)
        ask_for(batchers[order[1]], memos[1])
        for index, memo in zip(order, memos, strict=True):
            batchers[index].close(memo)

    running = [threads.submit(work, order) for order in ((0, 1), (1, 0))]
    clock.wait_for_sleepers(2)
    clock.advance(IDLE_SECONDS)
    clock.wait_for_sleepers(2)
    assert [len(batcher.store.passes) for batcher in batchers] == [1, 1]
    clock.advance(POLL_SECONDS)
    for future in running:
        future.result(SOON)
    assert [len(batcher.store.passes) for batcher in batchers] == [2, 2]


def test_prompt_that_can_never_fit_is_refused(tmp_path):
    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level())
    with Ensemble.from_pretrained({"model": str(path), "max_kv_tokens": 100}) as ensemble:
        assert ensemble.describe()["members"][0]["max_kv_tokens"] == 100
        assert ensemble.generate("The quick", max_new_tokens=4).usage.completion_tokens == {"own": 4}
        with pytest.raises(ContextOverflowError, match=r"'own'.*\d+ tokens.*64 more.*holds 100"):
            ensemble.generate("1984, " * 20, max_new_tokens=4)


@pytest.mark.parametrize("store", ["tree", "fork"])
def test_answer_ends_where_the_memory_is_full(tmp_path, store):
    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level(chat=False))
    held = []
    config = {"model": str(path), "kv_store": store, "max_kv_tokens": 150, "end_tokens": []}
    with Ensemble.from_pretrained(config, branches=1, max_word_tokens=6) as ensemble:
        (member,) = ensemble.members
        member.end_ids = frozenset()
        events = []
        for event in ensemble.stream("The quick", max_new_tokens=None):
            held.append(member.backend.tokens_held())
            events.append(event)
        usage = events[-1].usage
    assert events[-1].reason == "length"
    assert 150 - SPARE_TOKENS - 12 <= usage.prompt_tokens["own"] + usage.completion_tokens["own"] <= 150 - SPARE_TOKENS
    if store == "tree":
        assert max(held) <= 150


@pytest.mark.parametrize("store", ["tree", "fork", "prefill"])
def test_answers_are_the_same_in_scarce_memory(tmp_path, store):
    path = tiny.save_tiny(tmp_path / "own", tiny.byte_level(), tiny.sliding_mistral)
    prompts = ["The quick brown"[:length] for length in range(3, 11)]
    config = {"model": str(path), "dtype": "float64", "kv_store": store}
    with Ensemble.from_pretrained(config, config) as rich:
        expected = [answer.text for answer in rich.batch(prompts, max_new_tokens=8)]
    with Ensemble.from_pretrained(config, config | {"max_kv_tokens": 200}) as poor:
        assert [answer.text for answer in poor.batch(prompts, max_new_tokens=8)] == expected
        assert [member.backend.tokens_held() for member in poor.members] == [0, 0]
