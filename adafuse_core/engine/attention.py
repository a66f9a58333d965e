"""Attention over token trees, put in place of a Hugging Face model's own.

One pass reads tokens of many sequences as one flat row. A token attends to its own ancestors in its own sequence:
nothing is padded, and no key is copied for a branch. Models call this through transformers' `AttentionInterface`; their
code is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from adafuse_core.engine.sequence_part import SequencePart

NAME = "adafuse_tree"
_FEW = 32  # for so few tokens, heads that share keys are computed as one head; for more, the keys are expanded
# Models look attention up by name in a registry of the process, and tell it neither cache nor pass: so it has to find
# the pass that runs in its own thread.
_running: ContextVar[TreePass] = ContextVar("tree_pass")


class Scores(NamedTuple):
    """How a layer changes its scores before the softmax.

    Attributes:
        scaling: A factor; None for the usual one.
        softcap: A bound, as in Gemma 2.
        sinks: `[heads]`, as in gpt-oss.
    """

    scaling: float | None
    softcap: float | None
    sinks: torch.Tensor | None


class TreePass(Cache):  # type: ignore[misc]
    """One forward pass over trees. Models take it for their cache."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self._layer = -1  # the last one that stored its keys, so the one that attends next

    def __enter__(self) -> Self:
        self._token = _running.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _running.reset(self._token)

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Positions are given to the model, so nothing is counted here."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, `[1, kv_heads, tokens, dim]`."""
        self._layer = layer_idx
        self._store(layer_idx, key_states, value_states)
        return key_states, value_states

    def attend(self, query: torch.Tensor, window: int | None, scores: Scores) -> torch.Tensor:
        """`[1, heads, tokens, dim]` -> `[1, tokens, heads, dim]`."""
        raise NotImplementedError

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        raise NotImplementedError


class RaggedPass(TreePass):
    """A pass without padding: a flat row of tokens, in which each sequence has as many as it needs.

    Args:
        parts: In the order of the flat row.
    """

    def __init__(self, parts: Sequence[SequencePart]) -> None:
        super().__init__()
        self._parts = parts
        self._lengths = [len(part.tokens) for part in parts]

    def attend(self, query: torch.Tensor, window: int | None, scores: Scores) -> torch.Tensor:
        """`[1, heads, tokens, dim]` -> `[1, tokens, heads, dim]`."""
        attended = []
        for part, own in zip(self._parts, torch.split(query, self._lengths, 2), strict=True):
            keys, values = part.read(self._layer, query.device)
            mask = partial(part.mask_tensor, window, query)
            attended.append(attend(own, keys, values, mask, scores))
        return (attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)).transpose(1, 2)

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        new = zip(*(torch.split(states, self._lengths, 2) for states in (keys, values)), strict=True)
        for part, (own_keys, own_values) in zip(self._parts, new, strict=True):
            part.write(layer, own_keys, own_values)


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
    """The function that models call; see `TreePass.attend`. Their own mask is ignored: a pass brings its masks."""
    if position_bias is not None:
        raise NotImplementedError("attention with a position bias")
    return _running.get().attend(query, sliding_window, Scores(scaling, softcap, s_aux)), None


AttentionInterface.register(NAME, tree_attention)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: Callable[[int], torch.Tensor],
    scores: Scores,
) -> torch.Tensor:
    """Attention of rows of tokens, each row to its own keys and values, which are not copied.

    Args:
        query: `[rows, heads, tokens, dim]`.
        keys: `[rows, kv_heads, slots, dim]`.
        values: The same.
        mask: Called with a number of repeats, gives `[..., repeats * tokens, slots]`: 0 where a token attends to a
            slot, else -inf.
        scores: How the layer changes them.

    Returns:
        `[rows, heads, tokens, dim]`.
    """
    rows, heads, tokens, dim = query.shape
    group = heads // keys.shape[1]
    if scores.softcap is not None or scores.sinks is not None:
        attended = _plain(query, keys, values, mask(group), scores)
    elif tokens <= _FEW or group == 1 or rows > 1:
        merged = query.reshape(rows, -1, group * tokens, dim)
        attended = scaled_dot_product_attention(merged, keys, values, attn_mask=mask(group), scale=scores.scaling)
    else:
        keys, values = (part[0, :, None].expand(-1, group, -1, -1) for part in (keys, values))
        grouped = query.reshape(-1, group, tokens, dim)
        attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask(1), scale=scores.scaling)
    return attended.reshape(rows, heads, tokens, -1)


def _plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, how: Scores
) -> torch.Tensor:
    """With soft-capped scores or attention sinks; half precision takes the softmax in float32."""
    rows, _, tokens, dim = query.shape
    merged = query.reshape(rows, keys.shape[1], -1, dim)  # the heads that share keys are read as one
    scores = merged @ keys.transpose(-1, -2) * (dim**-0.5 if how.scaling is None else how.scaling)
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    scores = scores + mask
    if how.sinks is not None:
        sink = (
            how.sinks[:, None].expand(-1, tokens).reshape(1, keys.shape[1], -1, 1)
        )  # [1, kv_heads, group * tokens, 1]
        scores = torch.cat([scores, sink.expand(rows, -1, -1, -1).to(scores.dtype)], dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    return weights[..., : keys.shape[2]] @ values
