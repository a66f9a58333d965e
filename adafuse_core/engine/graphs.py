"""CUDA graphs: the kernels of a pass, recorded once and launched again as a whole."""

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
Recorder = Callable[[Run], Run]  # takes what launches a pass, gives what launches it again

_capturing = threading.Lock()  # PyTorch can record only one graph at a time in a process, of whatever model


def recorder(model: Model) -> Recorder | str:
    """The recorder for a model's passes, or why they can't be recorded."""
    if model.device.type != "cuda":
        return f"the model runs on {model.device}"
    if {tensor.device for tensor in (*model.module.parameters(), *model.module.buffers())} != {model.device}:
        return f"not all of the model lies on {model.device}"
    return GraphRecorder(model.device)


class GraphRecorder:
    """Records passes of one model.

    All its graphs are recorded on one stream, which nobody else uses, so that the workspaces of cuBLAS lie in the
    memory that these graphs share, and live as long as the graphs.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self._memory: Any = None
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """Record the kernels that a run launches; see `Recorder`."""
        with _capturing, torch.cuda.device(self._device):
            with ReadsNoNumber():  # type: ignore[no-untyped-call]
                run()  # on this thread, since libraries choose and allocate for each thread at their first use
            if not self._alive:
                self._memory = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with (
                    torch.cuda.stream(self._stream),  # left in any case, which `torch.cuda.graph` does not promise
                    torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    run()
            except BaseException:
                with contextlib.suppress(Exception):  # a failed end leaves the allocator waiting for another one
                    torch._C._cuda_endAllocateToPool(self._device.index, self._memory)
                raise
            self._alive.add(graph)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


class ReadsNoNumber(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations that wait for a number from the device, which a graph can't contain.

    A recording that fails half-way may leave PyTorch's memory management in disorder, so they are found before it.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        if func in _READING:
            raise RuntimeError(f"{func} reads from the device, so the pass can't be recorded")
        result = func(*args, **(kwargs or {}))
        if _on_cpu(result) and any(torch.is_tensor(value) and value.is_cuda for value in args):
            raise RuntimeError(f"{func} copies from the device, so the pass can't be recorded")
        return result


_READING = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
)


def _on_cpu(result: Any) -> bool:
    return torch.is_tensor(result) and result.device.type == "cpu"
