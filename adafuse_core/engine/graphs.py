"""CUDA graphs: what a pass does on the GPU, recorded once, is launched again as a whole."""

from __future__ import annotations

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.steps import Recorder, Run


def recorder(model: Model) -> Recorder | str:
    """What records passes of a model, or why nothing can."""
    devices = {tensor.device for tensor in (*model.module.parameters(), *model.module.buffers())}
    if len(devices) > 1:
        return "the model lies on several devices"
    if model.device.type != "cuda":
        return f"the model runs on {model.device}"
    device, memory = model.device, torch.cuda.graph_pool_handle()

    def record(run: Run) -> Run:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what a first run allocates or picks is not to be recorded
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):  # others may use other GPUs
                run()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay

    return record
