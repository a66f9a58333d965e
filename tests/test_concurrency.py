"""Hundreds of concurrent requests that are randomly cancelled, abandoned or failing do not affect each other."""

from __future__ import annotations

import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adafuse_core import (
    AdaFuseError,
    CancelledError,
    ContextOverflowError,
    Ensemble,
    MemberError,
    NonFiniteLogitsError,
    TemplateError,
    TextDelta,
)

THREADS = 24
TOKENS = 6  # of an answer
MESSAGES = [{"role": "user", "content": "Smile 😀\n\n| a < b |"}]
PROMPTS = [  # of different lengths
    "The",
    "Grüße 日本",
    "x = [1984,\n    ",
    "The quick brown fox jumps over the lazy dog. The quick",
    MESSAGES,
    "Question: what is it?\nAnswer: it is what it is.\n" * 3,
    *(f"{number} reasons, " * number for number in range(1, 5)),
]
KINDS = {  # behaviour of requests, with its frequency
    "finish": 50,
    "cancelled before": 6,
    "cancelled by event": 14,
    "closed": 10,
    "left by break": 10,
    "too long": 5,
    "bad template": 5,
}


@pytest.fixture(scope="module")
def members(tiny_models):
    """A tree store with a small capacity, and fork stores."""
    first = {"model": str(tiny_models["bytes"]), "kv_store": "tree", "max_kv_tokens": 1200}
    second = {"model": str(tiny_models["pieces"]), "kv_store": "fork"}
    return [member | {"dtype": "float64"} for member in (first, second)]


@pytest.fixture
def ensemble(members):
    with Ensemble.from_pretrained(*members, max_word_tokens=6) as loaded:
        yield loaded


@pytest.fixture
def broken(members):
    """Its second member can't render any conversation."""
    bad = members[1] | {"name": "rude", "chat_template": "{{ raise_exception('no') }}"}
    with Ensemble.from_pretrained(members[0], bad) as loaded:
        yield loaded


@pytest.fixture
def recorded(members, monkeypatch):
    """The tree store runs small passes in fixed shapes, as with CUDA graphs."""
    monkeypatch.setattr("adafuse_core.engine.store_choice.recorder", lambda _: lambda run: run)
    with Ensemble.from_pretrained(members[0] | {"cuda_graphs": True}, members[1], max_word_tokens=6) as loaded:
        yield loaded


def held(ensemble):
    return [member.backend.tokens_held() for member in ensemble.members]


class Attempt:
    """One request of a kind, with its result."""

    def __init__(self, kind, prompt, moment):
        self.kind, self.prompt, self.moment = kind, prompt, moment
        self.text, self.error, self.whole = "", None, False

    def run(self, ensemble, broken):
        cancel = threading.Event()
        prompt = PROMPTS[self.prompt]
        if self.kind == "too long":
            prompt = "quick brown " * 300
        elif self.kind == "bad template":
            ensemble, prompt = broken, MESSAGES
        elif self.kind == "cancelled before":
            cancel.set()
        stream = ensemble.stream(prompt, cancel=cancel, max_new_tokens=TOKENS)
        try:
            self.consume(stream, cancel)
        except Exception as error:
            self.error = error

    def consume(self, stream, cancel):
        timer = None
        if self.kind == "cancelled by event" and self.moment % 2:
            timer = threading.Timer(self.moment / 50, cancel.set)
            timer.start()
        try:
            for count, event in enumerate(stream):
                self.text += event.text if isinstance(event, TextDelta) else ""
                if count == self.moment and self.kind == "cancelled by event":
                    cancel.set()
                elif count == self.moment and self.kind == "closed":
                    stream.close()
                elif count == self.moment and self.kind == "left by break":
                    break
            else:
                self.whole = self.kind != "closed" or count < self.moment
        finally:
            if timer:
                timer.cancel()

    def problem(self, expected, names):
        """Problems of the result."""
        text = expected[self.prompt]
        if self.whole and self.text != text:
            return f"text {self.text!r}, not {text!r}"
        if not text.startswith(self.text):
            return f"text {self.text!r} is no beginning of {text!r}"
        if self.error is None:
            return None if self.whole or self.kind in ("closed", "left by break") else "no error"
        wanted = {
            "cancelled before": CancelledError,
            "cancelled by event": CancelledError,
            "too long": ContextOverflowError,
            "bad template": TemplateError,
        }.get(self.kind, NonFiniteLogitsError)
        if not isinstance(self.error, wanted | NonFiniteLogitsError):
            return f"{self.error!r} where {wanted.__name__} was expected"
        if self.error.member not in names and not isinstance(self.error, CancelledError):
            return f"{self.error!r} names no member"
        return None


class NanInjector:
    """Repeatedly puts a NaN into a model's weights for three passes: a running one, one over many requests, and one
    that retries a single request. Counted in passes, so that no clock decides what fails.

    Weights of queries and keys are left out: PyTorch's CPU kernels treat a row of NaN scores as masked, which gives
    finite but wrong logits.
    """

    def __init__(self, module, every, seed):
        self.every = every  # so many passes, on average
        self.weights = [module.model.layers[1].self_attn.v_proj.weight, module.model.norm.weight]
        self.draw, self.next, self.passes = random.Random(seed), 8, 0
        self.damage = None  # weights, place, good value
        self.hooks = [module.register_forward_pre_hook(self.before), module.register_forward_hook(self.after)]

    def before(self, *_):
        self.passes += 1
        if self.passes == self.next:
            weight = self.draw.choice(self.weights).data.view(-1)
            place = self.draw.randrange(len(weight))
            self.damage = weight, place, weight[place].item()
            weight[place] = float("nan")

    def after(self, *_):
        if self.damage and self.passes >= self.next + 2:
            self.mend()
            self.next = self.passes + self.draw.randrange(self.every // 2, self.every * 3 // 2)

    def mend(self):
        if self.damage:
            weight, place, good = self.damage
            weight[place], self.damage = good, None

    def remove(self):
        for hook in self.hooks:
            hook.remove()
        self.mend()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("kind", "sick", "count", "every"), [("ensemble", 1, 360, 140), ("recorded", 0, 120, 60)])
def test_concurrent_requests_of_all_kinds_do_not_interfere(request, kind, sick, count, every, broken, record_property):
    ensemble = request.getfixturevalue(kind)
    expected = [ensemble.generate(prompt, max_new_tokens=TOKENS).text for prompt in PROMPTS]
    draw = random.Random(0)
    chosen = draw.choices(list(KINDS), KINDS.values(), k=count)
    requests = [Attempt(one, draw.randrange(len(PROMPTS)), draw.randrange(6)) for one in chosen]
    injector = NanInjector(ensemble.members[sick].backend.model.module, every, seed=1)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(asked.run, ensemble, broken) for asked in requests]:
                future.result(200)
    finally:
        injector.remove()
    names = {*ensemble.names, *broken.names}
    problems = [
        (asked.kind, asked.prompt, problem) for asked in requests if (problem := asked.problem(expected, names))
    ]
    assert not problems
    assert held(ensemble) == [0, 0]
    assert held(broken) == [0, 0]
    if (fixed := ensemble.members[0].backend._batcher.store._fixed) is not None:
        ensemble.forget()
        gc.collect()
        assert len(fixed.pool._free) == fixed.pool._size - 2
    finished = sum(asked.whole for asked in requests)
    failed = sum(isinstance(asked.error, NonFiniteLogitsError) for asked in requests)
    assert finished > len(requests) // 3
    assert 0 < failed < len(requests) // 4
    after = [answer.text for answer in ensemble.batch(PROMPTS, max_new_tokens=TOKENS)]
    assert after == expected
    record_property("requests of all kinds at once", len(requests))


@pytest.mark.timeout(240)
def test_closing_while_many_requests_run_ends_each_with_its_answer_or_a_clear_error(members, record_property):
    ensemble = Ensemble.from_pretrained(*members, max_word_tokens=6)
    expected = [ensemble.generate(prompt, max_new_tokens=TOKENS).text for prompt in PROMPTS]
    draw = random.Random(1)
    texts, errors = [], []

    def work(index):
        try:
            texts.append((index, ensemble.generate(PROMPTS[index], max_new_tokens=TOKENS).text))
        except AdaFuseError as error:
            errors.append(error)

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(work, draw.randrange(len(PROMPTS))) for _ in range(80)]
        for turn in range(5):
            while len(texts) + len(errors) < 12 * turn + draw.randrange(3, 12):
                time.sleep(0.01)
            ensemble.close()  # later requests load the models again
        for future in running:
            future.result(200)
    assert len(texts) + len(errors) == 80
    assert all(text == expected[index] for index, text in texts)
    assert all(isinstance(error, MemberError) and error.member in ensemble.names for error in errors)
    assert {error.message for error in errors} <= {"its model was freed by close() while it was in use"}
    assert len(texts) > 20
    assert held(ensemble) == [0, 0]
    ensemble.close()
    record_property("requests of all kinds at once", 80)


def test_failure_in_a_batch_cancels_the_others_though_they_can_be_cancelled_from_outside(ensemble):
    before = sum(member.backend.model.forwards for member in ensemble.members)
    prompts = ["quick brown " * 300, *PROMPTS]
    with pytest.raises(ContextOverflowError):
        ensemble.batch(prompts, max_concurrency=4, cancel=threading.Event(), max_new_tokens=200)
    assert sum(member.backend.model.forwards for member in ensemble.members) - before < 400
    assert held(ensemble) == [0, 0]


@torch.inference_mode()
def test_batch_from_within_inference_mode_gives_the_same_texts(ensemble):
    with torch.inference_mode(False):
        expected = [answer.text for answer in ensemble.batch(PROMPTS[:4], max_new_tokens=TOKENS)]
    assert [answer.text for answer in ensemble.batch(PROMPTS[:4], max_new_tokens=TOKENS)] == expected


def test_different_models_that_are_loaded_at_once_are_loaded_right():
    def ensemble(number):
        return Ensemble(members=[{"model": ("small:aspen", "small:birch")[number % 2], "max_kv_tokens": 4000 + number}])

    expected = [ensemble(number).generate("Hello!", max_new_tokens=4).text for number in range(2)]
    others = [ensemble(number) for number in range(2, 8)]
    with ThreadPoolExecutor(len(others)) as threads:
        texts = list(threads.map(lambda each: each.generate("Hello!", max_new_tokens=4).text, others))
    assert texts == expected * 3
