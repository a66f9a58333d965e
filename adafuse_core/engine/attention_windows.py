"""Sliding windows and attention chunks of a model. They can be shortened, so that a short test reaches beyond them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from adafuse_core.engine.forward import Model

_NAMES = ("sliding_window", "attention_chunk_size")  # of a config, and of the layers that keep their own copy


def attention_windows(config: object) -> Sequence[int]:
    """Lengths of the sliding windows and attention chunks that are shorter than the longest context."""
    types = getattr(config, "layer_types", None)
    if types is not None and set(types) == {"full_attention"}:
        return []
    found = [getattr(config, name, None) for name in _NAMES]
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    return [window for window in found if isinstance(window, int) and window < longest]


@contextmanager
def shortened(model: Model, length: int) -> Iterator[None]:
    """Shorten all windows that are longer than this many tokens, in the config and in the layers.

    Windows that a layer has built into tensors or functions keep their length, so the caller has to find out whether
    the short ones are in use.
    """
    changed: list[tuple[Any, str, int]] = []
    try:
        for holder in _holders(model.module):
            for name in _NAMES:
                value = getattr(holder, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > length:
                    changed.append((holder, name, value))
                    setattr(holder, name, length)
        yield
    finally:
        for holder, name, value in reversed(changed):
            setattr(holder, name, value)


def _holders(module: Any) -> list[Any]:
    """The modules of a model and their configs, each once."""
    modules = list(module.modules())
    configs = [each.config for each in modules if hasattr(each, "config")]
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    return list({id(each): each for each in (*configs, *modules)}.values())
