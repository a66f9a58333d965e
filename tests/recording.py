"""Records passes without a GPU, to the same end as a CUDA graph.

A traced run is the row of tensor operations that it launched. Replaying them reads and writes the very tensors that the
run did; whatever Python decided on the way, or read from a tensor, is frozen in. What works so can be a CUDA graph.
"""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx


def traced(run):
    """A replay of a run; see `adafuse_core.engine.graphs.Recorder`."""
    recorded = make_fx(lambda: run())()

    def replay():
        with torch.inference_mode():
            recorded()

    return replay
