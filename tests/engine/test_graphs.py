"""The CUDA calls of a recording. CUDA is replaced by a list of calls, so these tests need no GPU."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

from adafuse_core.engine import store_choice
from adafuse_core.engine.graphs import GraphRecorder, RefuseDeviceReads, recorder
from adafuse_core.engine.store_choice import UnsupportedSetting, choose_store
from tests.engine.test_stores import build


class Cuda:
    """Records the calls in order."""

    def __init__(self, monkeypatch):
        self.notes = []
        self.pools = 0
        self.fails = False
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: "own stream")
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.pool)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self.notes))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    def pool(self):
        self.pools += 1
        return self.pools

    def end(self, index, pool):
        self.notes.append(f"allocator of GPU {index} told, memory {pool}")

    @contextlib.contextmanager
    def device(self, _):
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        self.notes.append(f"on {stream}")
        try:
            yield
        finally:
            self.notes.append(f"off {stream}")

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        assert stream == "own stream"
        assert capture_error_mode == "thread_local"
        self.notes.append(f"begin with memory {pool}")
        yield
        if self.fails:
            raise RuntimeError("capture was invalidated")
        self.notes.append("end")


class Graph:
    def __init__(self, notes):
        self.notes = notes

    def replay(self):
        self.notes.append("replay")


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_run_is_warmed_up_and_then_recorded_on_a_private_stream(cuda):
    replay = GraphRecorder(torch.device("cuda:1"))(lambda: cuda.notes.append("run"))
    assert cuda.notes == ["run", "on own stream", "begin with memory 1", "run", "end", "off own stream"]
    cuda.notes.clear()
    replay()
    replay()
    assert cuda.notes == ["replay", "replay"]


def test_graphs_share_memory_while_one_of_them_is_alive(cuda):
    record = GraphRecorder(torch.device("cuda:0"))
    replays = [record(lambda: None) for _ in range(3)]
    assert cuda.pools == 1
    replays.clear()
    gc.collect()
    replays.append(record(lambda: None))
    assert cuda.pools == 2
    assert "begin with memory 2" in cuda.notes


def test_failed_recording_restores_the_allocator_and_the_next_one_works(cuda):
    record = GraphRecorder(torch.device("cuda:1"))
    cuda.fails = True
    with pytest.raises(RuntimeError, match="invalidated"):
        record(lambda: None)
    assert cuda.notes[-2:] == ["off own stream", "allocator of GPU 1 told, memory 1"]
    cuda.fails = False
    record(lambda: None)()
    assert cuda.notes[-1] == "replay"


def test_device_reads_are_refused_before_anything_is_recorded(cuda):
    record = GraphRecorder(torch.device("cuda:0"))
    numbers = torch.arange(3)
    for run in (lambda: numbers.sum().item(), lambda: numbers.nonzero(), lambda: bool(numbers[0])):
        with pytest.raises(RuntimeError, match="can't be recorded"):
            record(run)
    assert cuda.notes == []


def test_experts_selected_in_python_are_refused(monkeypatch):
    def record(run):
        with RefuseDeviceReads():
            run()
        return run

    monkeypatch.setattr(store_choice, "recorder", lambda _: record)
    for family in ("llama", "qwen3", "gemma2", "gpt2", "phi3"):
        assert choose_store(build(family), cuda_graphs=True).recorded
    model = build("mixtral")
    model.module.set_experts_implementation("eager")
    with pytest.raises(UnsupportedSetting, match="can't be recorded"):
        choose_store(model, cuda_graphs=True)


def test_recorder_says_why_a_model_can_not_be_recorded():
    assert recorder(build("llama")) == "the model runs on cpu"
