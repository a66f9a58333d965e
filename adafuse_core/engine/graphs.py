"""CUDA graphs: the kernels of a pass, recorded once and replayed as a whole."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adafuse_core.engine.forward import Model

Run = Callable[[], None]
Recorder = Callable[[Run], Run]  # records a run, returns its replay

_capture_lock = threading.Lock()  # PyTorch can capture only one graph at a time per process, of any model


def recorder(model: Model) -> Recorder | str:
    """The recorder for a model's passes, or the reason why they can't be recorded."""
    if model.device.type != "cuda":
        return f"the model runs on {model.device}"
    if {tensor.device for tensor in (*model.module.parameters(), *model.module.buffers())} != {model.device}:
        return f"part of the model is not on {model.device}"
    return GraphRecorder(model.device)


class GraphRecorder:
    """Records passes of one model.

    All its graphs are captured on one private stream, so that the workspaces of cuBLAS are in the memory pool that the
    graphs share, and live as long as the graphs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self._memory: Any = None
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """Record the kernels that a run launches; see `Recorder`."""
        with _capture_lock, torch.cuda.device(self._device):
            with RefuseDeviceReads():  # type: ignore[no-untyped-call]
                run()  # warm-up on this thread: libraries choose kernels and allocate per thread at their first use
            if not self._alive:
                self._memory = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with (
                    torch.cuda.stream(self._stream),  # restores the stream after any error, unlike `torch.cuda.graph`
                    torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    run()
            except BaseException:
                with contextlib.suppress(Exception):  # a failed capture leaves the allocator in capture mode
                    torch._C._cuda_endAllocateToPool(self._device.index, self._memory)
                raise
            self._alive.add(graph)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


class RefuseDeviceReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises on operations that read a value from the device, which a graph can't contain.

    They must be found before the capture: a failed capture may corrupt the state of PyTorch's allocator.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        if func in _DEVICE_READS:
            raise RuntimeError(f"{func} reads from the device, so the pass can't be recorded")
        result = func(*args, **(kwargs or {}))
        on_cpu = torch.is_tensor(result) and result.device.type == "cpu"
        if on_cpu and any(torch.is_tensor(value) and value.is_cuda for value in args):
            raise RuntimeError(f"{func} copies from the device, so the pass can't be recorded")
        return result


_DEVICE_READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
)
