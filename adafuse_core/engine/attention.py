"""Attention over token trees, in place of the attention of a Hugging Face model.

One pass reads tokens of many sequences as one flat row. A token attends only to its ancestors in its own sequence, so
no sequence is padded and no branch copies keys. Models call this code through transformers' `AttentionInterface`; the
code of the models is unchanged.
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
_FEW_TOKENS = 32  # up to this number, heads that share keys are merged into one head; beyond it, keys are expanded
# Models find attention functions by name in a process-wide registry, and pass neither cache nor pass object to them.
# The function therefore looks up the pass that runs in its own thread.
_current_pass: ContextVar[TreePass] = ContextVar("current_pass")


class ScoreOptions(NamedTuple):
    """How a layer changes its attention scores before the softmax.

    Attributes:
        scaling: Factor; None for `dim**-0.5`.
        softcap: Bound, as in Gemma 2.
        sinks: `[heads]`, as in gpt-oss.
    """

    scaling: float | None
    softcap: float | None
    sinks: torch.Tensor | None


class TreePass(Cache):  # type: ignore[misc]
    """One forward pass over trees, passed to the model as its cache."""

    is_compileable = False

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self._layer = -1  # the layer that stored its keys last, and attends next

    def __enter__(self) -> Self:
        self._token = _current_pass.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current_pass.reset(self._token)

    def get_seq_length(self, layer_idx: int = 0, *_: Any, **__: Any) -> int:
        """Always 0, since the model receives explicit positions."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, `[1, kv_heads, tokens, dim]`."""
        self._layer = layer_idx
        self._store(layer_idx, key_states, value_states)
        return key_states, value_states

    def attend(self, query: torch.Tensor, window: int | None, options: ScoreOptions) -> torch.Tensor:
        """`[1, heads, tokens, dim]` -> `[1, tokens, heads, dim]`."""
        raise NotImplementedError

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        raise NotImplementedError


class RaggedPass(TreePass):
    """A pass without padding: one flat row with the tokens of all parts, in order."""

    def __init__(self, parts: Sequence[SequencePart]) -> None:
        super().__init__()
        self._parts = parts
        self._lengths = [len(part.tokens) for part in parts]

    def attend(self, query: torch.Tensor, window: int | None, options: ScoreOptions) -> torch.Tensor:
        """`[1, heads, tokens, dim]` -> `[1, tokens, heads, dim]`."""
        attended = []
        for part, own in zip(self._parts, self._split(query), strict=True):
            keys, values = part.read(self._layer, query.device)
            attended.append(attend(own, keys, values, partial(part.mask_tensor, window, query), options))
        return (attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)).transpose(1, 2)

    def _store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for part, own_keys, own_values in zip(self._parts, self._split(keys), self._split(values), strict=True):
            part.write(layer, own_keys, own_values)

    def _split(self, states: torch.Tensor) -> Sequence[torch.Tensor]:
        """The states of each part, of `[1, heads, tokens, dim]`."""
        return (states,) if len(self._parts) == 1 else torch.split(states, self._lengths, 2)


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
    """The attention function that models call. Their own masks are ignored: the current `TreePass` has the masks."""
    if position_bias is not None:
        raise NotImplementedError("attention with a position bias")
    return _current_pass.get().attend(query, sliding_window, ScoreOptions(scaling, softcap, s_aux)), None


AttentionInterface.register(NAME, tree_attention)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: Callable[[int], torch.Tensor],
    options: ScoreOptions,
) -> torch.Tensor:
    """Attention of rows of tokens, each row to its own keys and values, which are not copied.

    Args:
        query: `[rows, heads, tokens, dim]`. The result has the same layout.
        keys: `[rows, kv_heads, slots, dim]`. The values have the same layout.
        mask: Called with a number of repeats, returns `[..., repeats * tokens, slots]`: 0 where a token attends to a
            slot, else -inf.
    """
    rows, heads, tokens, dim = query.shape
    group = heads // keys.shape[1]
    if options.softcap is not None or options.sinks is not None:
        attended = _attend_eagerly(query, keys, values, mask(group), options)
    elif tokens <= _FEW_TOKENS or group == 1 or rows > 1:
        merged = query.reshape(rows, -1, group * tokens, dim)
        attended = scaled_dot_product_attention(merged, keys, values, attn_mask=mask(group), scale=options.scaling)
    else:
        keys, values = (part[0, :, None].expand(-1, group, -1, -1) for part in (keys, values))
        grouped = query.reshape(-1, group, tokens, dim)
        attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask(1), scale=options.scaling)
    return attended.reshape(rows, heads, tokens, -1)


def _attend_eagerly(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, options: ScoreOptions
) -> torch.Tensor:
    """Attention with soft-capped scores or attention sinks. In half precision, the softmax runs in float32."""
    rows, _, tokens, dim = query.shape
    merged = query.reshape(rows, keys.shape[1], -1, dim)  # heads that share keys as one head
    scores = merged @ keys.transpose(-1, -2) * (dim**-0.5 if options.scaling is None else options.scaling)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores + mask
    if options.sinks is not None:
        sinks = options.sinks[:, None].expand(-1, tokens)
        sinks = sinks.reshape(1, keys.shape[1], -1, 1)  # [1, kv_heads, group * tokens, 1]
        scores = torch.cat([scores, sinks.expand(rows, -1, -1, -1).to(scores.dtype)], dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    return weights[..., : keys.shape[2]] @ values
