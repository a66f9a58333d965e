"""Beginnings of a model's own cache: a cache of the first tokens, made from a cache of more tokens.

Layers of full attention are cut to any length. Layers of other kinds (sliding windows, chunks, recurrent states) can't
be cut: they are copied at some lengths while the tokens are read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class UncutLayers:
    """The layers of a one-row cache that can't be cut, after its first `length` tokens."""

    length: int
    layers: dict[int, Any]  # by index


def fork(cache: DynamicCache) -> Any:
    """An independent copy of a cache that shares its keys and values, which are never written in place."""
    twin = copy.copy(cache)
    twin.layers = [_fork_layer(layer) for layer in cache.layers]
    return twin


def uncut_layers(cache: DynamicCache, length: int) -> UncutLayers:
    """Copies of the layers that can't be cut."""
    found = {index: layer for index, layer in enumerate(cache.layers) if not _can_cut(layer)}
    return UncutLayers(length, {index: _fork_layer(layer) for index, layer in found.items()})


def one_row(cache: DynamicCache, row: int) -> Any:
    """A fork of a cache with only one of its rows."""
    twin = fork(cache)
    twin.reorder_cache(torch.tensor([row], device=_device(cache)))
    return twin


def can_cut(cache: DynamicCache) -> bool:
    """Whether every layer can be cut to any length."""
    return all(map(_can_cut, cache.layers))


def cut(cache: DynamicCache, row: int, length: int, uncut: UncutLayers | None) -> Any:
    """A one-row cache of the first tokens, which shares no memory with the old one.

    Args:
        cache: A cache of at least `length` tokens.
        row: Its row to use.
        length: Number of tokens.
        uncut: The layers that can't be cut, at this length; None if all can be cut.
    """
    twin = copy.copy(cache)
    twin.layers = []
    for index, layer in enumerate(cache.layers):
        if uncut is not None and index in uncut.layers:
            twin.layers.append(_fork_layer(uncut.layers[index]))
            continue
        part = copy.copy(layer)
        if layer.is_initialized:
            part.keys = layer.keys[row : row + 1, :, :length].clone()
            part.values = layer.values[row : row + 1, :, :length].clone()
        twin.layers.append(part)
    return twin


def _can_cut(layer: Any) -> bool:
    return type(layer) is DynamicLayer  # subclasses may keep more than keys and values


def _device(cache: DynamicCache) -> torch.device | None:
    return next((layer.device for layer in cache.layers if getattr(layer, "device", None) is not None), None)


def _fork_layer(layer: Any) -> Any:
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if name not in ("keys", "values"):
            setattr(twin, name, _cloned(value))
    return twin


def _cloned(value: Any) -> Any:
    """A copy of recurrent or convolution states, which the model writes in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    return value


def next_length(lengths: Sequence[int], chunk: int) -> int:
    """The next length at which layers that can't be cut are copied: one chunk, then twice the last length."""
    return 2 * lengths[-1] if lengths else chunk
