"""Forked processes: the adapters work in the child or raise a clear error, and never hang."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from adafuse_core import Ensemble, Grammar, MemberError, ModelLoadError
from adafuse_core.chat.guide import Guide
from adafuse_core.engine.batching import Batcher
from adafuse_core.forks import PassLock, renew_after_fork
from adafuse_core.members import registry
from adafuse_core.members.scripted import ScriptedMember
from tests.integrations.test_calls import ASYNC, KINDS, WAYS, asked, begun, endless, of, said

ROOT = Path(__file__).parents[2]
SECONDS = 60.0  # time limit of a child; reached only if it hangs

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(params=KINDS, ids=["ChatAdaFuse", "LangChain LLM", "LlamaIndex LLM"])
def kind(request):
    return request.param


def in_child(work):
    """Run work in a forked child and return its result, or the type and text of its error."""
    context = multiprocessing.get_context("fork")
    reading, writing = context.Pipe(duplex=False)

    def run():
        try:
            writing.send(work())
        except BaseException as error:
            writing.send((type(error).__name__, str(error)))

    child = context.Process(target=run)
    child.start()
    try:
        assert reading.poll(SECONDS), "the child hangs"
        return reading.recv()
    finally:
        child.kill()
        child.join()


def answer(llm, way, **options):
    return said(asyncio.run(asked(llm, way, **options)))


@pytest.mark.parametrize("way", WAYS)
def test_a_forked_child_gives_the_same_answer(kind, way):
    llm = kind(max_new_tokens=6)
    expected = answer(llm, way)
    assert in_child(lambda: [answer(llm, way) for _ in range(2)]) == [expected] * 2
    assert answer(llm, way) == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_child_is_forked_while_requests_run(kind, way):
    """Forks happen both during forward passes of the parent and between them."""
    llm, number = kind(max_new_tokens=4), 3
    expected = answer(llm, way)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            answer(llm, way, max_new_tokens=12)

    running = [threading.Thread(target=work) for _ in range(3)]
    for thread in running:
        thread.start()
    try:
        assert [in_child(lambda: answer(llm, way)) for _ in range(number)] == [expected] * number
    finally:
        stop.set()
        for thread in running:
            thread.join()


def test_members_at_several_places_work_in_a_child():
    members = [ScriptedMember(f"m{number}", "one two three", margin=0.0, place=f"p{number}") for number in range(3)]
    ensemble = Ensemble(members=members)
    stream = ensemble.stream("go")
    first = next(stream)
    assert in_child(lambda: ensemble.generate("go").text) == "one two three"
    assert in_child(lambda: len(list(stream))) == len(list(stream))
    assert first


def test_a_stream_started_in_the_parent_raises_in_the_child():
    with Ensemble(speculation="off") as ensemble:
        stream = ensemble.stream([{"role": "user", "content": "Hello!"}])
        next(stream)
        kind, text = in_child(lambda: list(stream))
        assert kind == MemberError.__name__
        assert "before the process was forked" in text
        assert list(stream)  # the stream continues in the parent
        assert [member.backend.tokens_held() for member in ensemble.members] == [0, 0]


def test_a_child_has_no_running_calls_of_its_parent():
    llm, member = endless(KINDS[0], steps=1)
    stream = begun(llm, "stream")
    next(stream)
    assert in_child(lambda: (len(llm._running_calls), llm.cancel())) == (0, 0)
    assert len(llm._running_calls) == 1
    stream.close()
    assert not member.running


@pytest.mark.parametrize("way", ASYNC)
def test_a_child_has_its_own_worker_threads(kind, way):
    llm, member = endless(kind, steps=0, max_async_requests=1)
    thread = threading.Thread(target=lambda: asyncio.run(ended(llm, way)))
    thread.start()
    while not member.running:
        pass
    try:
        assert in_child(lambda: answer(llm, way, timeout=0.1))[0] in ("DeadlineError", "ModelTimeoutError")
    finally:
        llm.cancel()
        thread.join()


async def ended(llm, way):
    return await asyncio.gather(asked(llm, way), return_exceptions=True)


def test_a_child_forked_during_loading_raises_an_error_that_says_so(monkeypatch):
    """In the child, the loading thread of the parent does not exist, and its locks (such as import locks) stay held."""
    loading, go_on = threading.Event(), threading.Event()

    def slow(*_):
        loading.set()
        assert go_on.wait(SECONDS)
        raise ModelLoadError("not here")

    monkeypatch.setattr("adafuse_core.members.loader.load_member", slow)
    ensemble = Ensemble(members=[{"model": "small:aspen", "name": "other", "max_kv_tokens": 1234}])

    def load():
        with pytest.raises(ModelLoadError, match="not here"):
            ensemble.load()

    thread = threading.Thread(target=load)
    thread.start()
    assert loading.wait(SECONDS)
    kind, text = in_child(ensemble.load)
    go_on.set()
    thread.join()
    assert kind == ModelLoadError.__name__
    assert "forked while its parent loaded a model (small:aspen)" in text
    assert not registry._loading


def test_a_child_raises_an_error_for_a_model_on_a_gpu(monkeypatch):
    with Ensemble(members=["small:aspen"]) as ensemble:
        ensemble.load()
        model = type(ensemble.members[0].backend.model)

        def in_a_child_with_gpu():
            monkeypatch.setattr(model, "device", property(lambda _: torch.device("cuda:0")))
            return ensemble.generate("go", max_new_tokens=1).text

        kind, text = in_child(in_a_child_with_gpu)
    assert kind == MemberError.__name__
    assert "loaded on cuda:0 before this process was forked" in text


SEVERAL_THREADS = """
import multiprocessing, sys, torch
from adafuse_core import Ensemble
torch.set_num_threads(2)
ensemble = Ensemble(max_word_tokens=8)
text = ensemble.generate("Hello!", max_new_tokens=2).text
assert torch.mm(torch.ones(300, 300), torch.ones(300, 300))[0, 0] == 300  # on both threads

def child():
    assert torch.mm(torch.ones(300, 300), torch.ones(300, 300))[0, 0] == 300
    assert ensemble.generate("Hello!", max_new_tokens=2).text == text

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
code = process.exitcode
process.kill()
sys.exit(1 if code is None else code)
"""


def test_a_parent_with_several_threads_of_torch_does_not_make_its_child_hang():
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_THREADS], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=150
    )
    assert done.returncode == 0, done.stderr


def test_a_fork_waits_for_the_pass_that_runs():
    lock, entered, leave, order = PassLock(), threading.Event(), threading.Event(), []

    def work():
        with lock:
            entered.set()
            assert leave.wait(SECONDS)
            order.append("pass")

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(SECONDS)
    threading.Timer(0.05, leave.set).start()
    seen = in_child(lambda: list(order))
    thread.join()
    assert seen == ["pass"]
    with lock:
        pass


def test_members_in_a_child_drop_the_requests_of_the_parent(kind):
    assert in_child(lambda: said(asyncio.run(asked(of(kind, ScriptedMember("a", "one two")), "awaited")))) == "one two"


def test_a_child_computes_a_cached_property_that_the_parent_was_computing():
    guide, lock = Grammar.regex("ab+").guide(), vars(Guide)["forced"]
    if not hasattr(lock, "lock"):
        pytest.skip("cached properties of this Python have no locks")
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.lock.acquire).result()
        try:
            assert in_child(lambda: guide.forced.text) == "ab"
        finally:
            other.submit(lock.lock.release).result()


def test_a_child_is_forked_while_requests_run_under_a_grammar(kind):
    if kind is KINDS[1]:
        pytest.skip("it takes no grammar")
    form = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    options = {"grammar": Grammar.json_schema(form)}
    if kind is KINDS[0]:
        options = {"response_format": {"type": "json_schema", "json_schema": {"name": "form", "schema": form}}}
    llm = kind(max_new_tokens=12)
    expected, stop = answer(llm, "whole", **options), threading.Event()

    def work():
        while not stop.is_set():
            answer(llm, "awaited", **options)

    running = [threading.Thread(target=work) for _ in range(2)]
    for thread in running:
        thread.start()
    try:
        assert [in_child(lambda: answer(llm, "awaited", **options)) for _ in range(3)] == [expected] * 3
    finally:
        stop.set()
        for thread in running:
            thread.join()


class Renewed:
    renewed = False

    def after_fork(self):
        self.renewed = True


class Failing:
    def after_fork(self):
        raise AttributeError("half built")


def test_an_object_that_cannot_be_renewed_is_logged_and_the_others_are_renewed(caplog):
    things = [Renewed(), Failing(), Renewed(), Failing(), Renewed()]
    for thing in things:
        renew_after_fork(thing)
    with Ensemble(members=["small:aspen"]) as ensemble:
        expected = ensemble.generate("Q: Hi\nA:", max_new_tokens=4).text

        def work():
            text = ensemble.generate("Q: Hi\nA:", max_new_tokens=4).text
            return text, [thing.renewed for thing in things[::2]], caplog.text.count("AttributeError: half built")

        assert in_child(work) == (expected, [True] * 3, 2)


def test_a_closed_model_that_is_still_referenced_does_not_keep_others_from_being_renewed():
    with Ensemble(members=[{"model": "small:aspen", "name": "closed", "max_kv_tokens": 1235}]) as ensemble:
        batcher = ensemble.members[0].backend._batcher
        ensemble.generate("Q: Hi\nA:", max_new_tokens=4)
    assert isinstance(batcher, Batcher)
    batcher.forget()  # there is nothing left

    def renew():
        batcher.after_fork()
        return batcher.tokens_cached()

    assert in_child(renew) == 0
