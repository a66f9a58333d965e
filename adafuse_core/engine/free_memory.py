"""How many tokens' keys and values fit into the free memory of a device."""

from __future__ import annotations

import os

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.engine.rounding import TEXT_LENGTH, sample_ids


def tokens_in_free_memory(device: torch.device, size: float) -> int | None:
    """Tokens of `size` bytes that fit into half of the device's free memory; None if unknown."""
    free = _free_bytes(device)
    return int(free // 2 // size) if size and free is not None else None


def bytes_per_token(model: Model) -> float:
    """Bytes by which the model's own cache grows per token; 0 if it has no such cache."""
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
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # such as by the self-test
        return torch.cuda.mem_get_info(device)[0] + unused
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
