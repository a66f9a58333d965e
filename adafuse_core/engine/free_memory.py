"""How many tokens' keys and values fit into the free memory of a device."""

from __future__ import annotations

import os

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.trials import TEXT_LENGTH, sample_ids


def tokens_in_free_memory(model: Model) -> int | None:
    """Tokens whose keys and values fit into half of the device's free memory; None if unknown."""
    size, free = _bytes_per_token(model), _free_bytes(model.device)
    return int(free // 2 // size) if size and free is not None else None


def _bytes_per_token(model: Model) -> float:
    """Bytes by which the cache grows per token; 0 if the model has no such cache."""
    cache = model.new_cache()
    sizes = []
    try:
        for _ in range(2):  # only the growth by the second text counts, since recurrent states have a constant size
            model.forward([sample_ids(model, TEXT_LENGTH)], cache)
            tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if torch.is_tensor(tensor)]
            sizes.append(sum(tensor.nbytes for tensor in tensors))
    except Exception:  # the model can't use a cache
        return 0
    return (sizes[1] - sizes[0]) / TEXT_LENGTH


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
