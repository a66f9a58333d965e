"""Attention over token trees, put in place of a Hugging Face model's own.

One pass reads tokens of many sequences as one flat row. Each sequence's tokens attend to the keys and values of
that sequence alone, and of those to the tokens on their own path: nothing is padded, and no key is copied for a
branch. Models call this through transformers' `AttentionInterface`; their code is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

NAME = "adafuse_tree"
_MERGED = (
    32  # up to so many tokens the heads of one group are read as one; else keys are expanded, which copies nothing
)
_current: ContextVar[TreePass] = ContextVar("tree_pass")


class Segment(Protocol):
    """The part of one sequence in a pass."""

    start: int  # of its tokens in the flat row
    stop: int

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store what a layer computed for the segment's tokens: `[kv_heads, tokens, dim]`."""

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of the sequence: `[kv_heads, slots, dim]`."""

    def bias(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """`[tokens, slots]`: 0 where a token sees a slot, else -inf."""


class TreePass(Cache):  # type: ignore[misc]
    """One forward pass over segments. Models take it for their cache.

    Args:
        segments: In the order of the flat row.
    """

    is_compileable = False

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.layers: list[Any] = []
        self._segments = segments
        self._layer = -1  # the last one that stored its keys, so the one that attends next

    def __enter__(self) -> TreePass:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Positions are given to the model, so nothing is counted here."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, `[1, kv_heads, tokens, dim]`."""
        self._layer = layer_idx
        for segment in self._segments:
            part = slice(segment.start, segment.stop)
            segment.write(layer_idx, key_states[0, :, part], value_states[0, :, part])
        return key_states, value_states

    def attend(
        self,
        query: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """`[1, heads, tokens, dim]` -> `[1, tokens, heads, dim]`."""
        parts = []
        for segment in self._segments:
            keys, values = segment.read(self._layer)
            own = query[0, :, segment.start : segment.stop]  # [heads, tokens, dim]
            grouped = own.reshape(keys.shape[0], -1, *own.shape[1:])  # [kv_heads, group, tokens, dim]
            bias = segment.bias(window, own)
            if softcap is None and sinks is None:
                seen = _fused(grouped, keys, values, bias, scaling)
            else:
                seen = _plain(grouped, keys, values, bias, scaling, softcap, sinks)
            parts.append(seen.reshape(own.shape[0], own.shape[1], -1))
        return torch.cat(parts, dim=1).transpose(0, 1)[None]


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function that models call; see `TreePass.attend`. The mask is the pass's own business."""
    if position_bias is not None:
        raise NotImplementedError("attention with a position bias")
    return _current.get().attend(query, scaling, sliding_window, softcap, s_aux), None


AttentionInterface.register(NAME, tree_attention)


def _fused(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """`query` is `[kv_heads, group, tokens, dim]`; so is what comes back."""
    kv_heads, group, tokens, dim = query.shape
    if group == 1 or tokens <= _MERGED:
        merged = query.reshape(1, kv_heads, group * tokens, dim)
        bias = bias.repeat(group, 1) if group > 1 else bias
        seen = scaled_dot_product_attention(merged, keys[None], values[None], attn_mask=bias, scale=scaling)
    else:
        keys = keys[:, None].expand(-1, group, -1, -1)
        values = values[:, None].expand(-1, group, -1, -1)
        seen = scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
    return seen.reshape(kv_heads, group, tokens, -1)


def _plain(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """With soft-capped scores (Gemma 2) or attention sinks (gpt-oss); half precision takes softmax in float32."""
    kv_heads, group, tokens, _ = query.shape
    scores = query @ keys[:, None].transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + bias
    if sinks is not None:
        sink = sinks.reshape(kv_heads, group, 1, 1).expand(-1, -1, tokens, 1).to(scores.dtype)
        scores = torch.cat([scores, sink], dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    return weights[..., : keys.shape[1]] @ values[:, None]
