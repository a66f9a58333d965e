"""Next-token distributions: from logits to log-probabilities and the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adafuse_core.text.ids import Ids

_ROWS = 16  # of logits that are made log-probabilities at a time
_AT_HAND = 8  # likeliest tokens that are read with every distribution


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution: its likeliest tokens, and all of it as a row of a table.

    Args:
        ids: Likeliest token ids; equal log-probabilities go by the lower id.
        logprobs: Their natural log-probabilities.
        table: `[rows, vocab]` log-probabilities of a whole pass.
        row: Which row.
    """

    ids: Ids
    logprobs: tuple[float, ...]
    table: torch.Tensor
    row: int

    def top(self, count: int) -> tuple[Ids, tuple[float, ...]]:
        """So many of the likeliest tokens and their log-probabilities."""
        if count <= len(self.ids) or len(self.ids) < _AT_HAND:  # there are no more
            return self.ids[:count], self.logprobs[:count]
        ids, logprobs = likeliest(self.table[self.row][None], count)
        return _possible(ids[0], logprobs[0])


def masked(known: Sequence[tuple[Distribution, bytes]]) -> list[Distribution]:
    """Distributions renormalized over the tokens that a mask allows.

    Args:
        known: Each distribution with its mask: one bit for each token, lowest first. All on one device.

    Raises:
        ValueError: No token of a table is allowed.
    """
    tables = [distribution.table[distribution.row] for distribution, _ in known]
    barred = np.ones((len(known), len(tables[0])), dtype=bool)
    for row, (_, allowed) in enumerate(known):
        flags = np.unpackbits(np.frombuffer(allowed, dtype=np.uint8), bitorder="little")[: barred.shape[1]]
        barred[row, : len(flags)] = flags == 0
    if barred.all(axis=1).any():
        raise ValueError("no token is allowed")
    with torch.inference_mode():
        values = torch.stack(tables)  # [rows, vocab]
        table = torch.log_softmax(values.masked_fill(torch.from_numpy(barred).to(values.device), -math.inf), dim=-1)
        ids, logprobs = likeliest(table, _AT_HAND)
    return [Distribution(*_possible(ids[row], logprobs[row]), table, row) for row in range(len(known))]


def _possible(ids: list[int], logprobs: list[float]) -> tuple[Ids, tuple[float, ...]]:
    """Without the tokens that have no probability."""
    count = sum(value > -math.inf for value in logprobs)
    return tuple(ids[:count]), tuple(logprobs[:count])


def distributions(logits: torch.Tensor) -> list[Distribution]:
    """The distribution of each row of `[rows, vocab]` logits, whose memory is reused for the result.

    Raises:
        FloatingPointError: A logit is NaN or infinite.
    """
    with torch.inference_mode():
        table = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        finite = torch.ones((), dtype=torch.bool, device=table.device)
        for start in range(0, len(table), _ROWS):  # a second table would be the largest tensor of a scoring pass
            block = table[start : start + _ROWS]
            finite &= torch.isfinite(block).all()
            table[start : start + _ROWS] = torch.log_softmax(block, dim=-1)
        ids, values = likeliest(table, _AT_HAND, valid=finite)
    return [Distribution(tuple(ids[row]), tuple(values[row]), table, row) for row in range(len(ids))]


def gather(wanted: Sequence[tuple[Distribution, int]]) -> list[float]:
    """Log-probabilities of tokens, each in its distribution; one transfer per table, none for the likeliest tokens."""
    by_table: dict[int, list[int]] = {}
    values = [0.0] * len(wanted)
    for index, (distribution, token) in enumerate(wanted):
        if token in distribution.ids:
            values[index] = distribution.logprobs[distribution.ids.index(token)]
        else:
            by_table.setdefault(id(distribution.table), []).append(index)
    for indices in by_table.values():
        table = wanted[indices[0]][0].table
        rows = torch.tensor([wanted[index][0].row for index in indices], device=table.device)
        tokens = torch.tensor([wanted[index][1] for index in indices], device=table.device)
        for index, value in zip(indices, table[rows, tokens].tolist(), strict=True):
            values[index] = value
    return values


def likeliest(
    values: torch.Tensor, count: int, *, valid: torch.Tensor | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` highest of each row, highest first; equal ones go by the lower index.

    Args:
        values: `[rows, vocab]`.
        count: How many.
        valid: A single truth value, looked at in the same transfer from the device.

    Returns:
        Indices and values, `[rows][count]`.

    Raises:
        FloatingPointError: Not valid.
    """
    count = min(count, values.shape[-1])
    top, index = torch.topk(values, min(count + 1, values.shape[-1]), dim=-1)  # one more, which may equal the last
    ties = (top[:, 1:] == top[:, :-1]).any()
    top, index = top[:, :count], index[:, :count]
    indices, highest, flags = _fetch(index, top, ties[None] if valid is None else torch.stack([ties, ~valid]))
    if flags[1:].any():
        raise FloatingPointError("NaN or infinite logits")
    if flags[0]:  # topk leaves the order of equal values open
        top, index = torch.sort(values, dim=-1, descending=True, stable=True)
        indices, highest = _fetch(index[:, :count], top[:, :count])
    return indices.tolist(), highest.tolist()


def _fetch(*tensors: torch.Tensor) -> list[Any]:
    """Arrays of tensors on one device, in one transfer."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    content = np.asarray(torch.cat(parts).cpu())
    ends = np.cumsum([len(part) for part in parts])
    arrays = []
    for tensor, end, part in zip(tensors, ends, parts, strict=True):
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays.append(content[end - len(part) : end].copy().view(kind).reshape(tensor.shape))
    return arrays
