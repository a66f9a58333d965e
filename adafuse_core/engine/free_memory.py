"""How much room a device has for keys and values."""

from __future__ import annotations

import os

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.trials import LENGTH, junk


def tokens_in_free_memory(model: Model) -> int | None:
    """How many tokens' keys and values fit into half of the device's free memory; None if that is not known."""
    size, free = _bytes_per_token(model), _free_bytes(model.device)
    return int(free // 2 // size) if size and free is not None else None


def _bytes_per_token(model: Model) -> float:
    """Bytes by which a cache grows with each token; 0 if the model has no such cache."""
    cache = model.new_cache()
    sizes = []
    try:
        for _ in range(2):  # the growth by the second text is what counts: recurrent states keep their size
            model.forward([junk(model, LENGTH)], cache)
            tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if torch.is_tensor(tensor)]
            sizes.append(sum(tensor.nbytes for tensor in tensors))
    except Exception:  # a model that can't use a cache
        return 0
    return (sizes[1] - sizes[0]) / LENGTH


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
