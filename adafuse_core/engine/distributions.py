"""Next-token distributions: from logits to log-probabilities and the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adafuse_core.text.ids import Ids

_BLOCK_ROWS = 16  # rows of logits per log-softmax
_TOP = 8  # likeliest tokens that are copied to the CPU with every distribution


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution: its likeliest tokens, and the whole of it as a row of a table.

    Args:
        ids: Likeliest token ids, likeliest first; equal log-probabilities in order of id.
        logprobs: Their natural log-probabilities.
        table: Log-probabilities of a whole pass, `[rows, vocab]`.
        row: Row of the table.
    """

    ids: Ids
    logprobs: tuple[float, ...]
    table: torch.Tensor
    row: int

    def top(self, count: int) -> tuple[Ids, tuple[float, ...]]:
        """The `count` likeliest tokens and their log-probabilities; fewer if no others have a probability above 0."""
        if count <= len(self.ids) or len(self.ids) < _TOP:
            return self.ids[:count], self.logprobs[:count]
        ids, logprobs = top_k(self.table[self.row][None], count)
        return _possible(ids[0], logprobs[0])


def masked(unmasked: Sequence[tuple[Distribution, bytes]]) -> list[Distribution]:
    """Distributions renormalized over the tokens that a mask allows.

    Args:
        unmasked: Each distribution with its mask, one bit per token, lowest bit first. All tables on one device.

    Raises:
        ValueError: A mask allows no token.
    """
    tables = [distribution.table[distribution.row] for distribution, _ in unmasked]
    excluded = np.ones((len(unmasked), len(tables[0])), dtype=bool)
    for row, (_, mask) in enumerate(unmasked):
        flags = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[: excluded.shape[1]]
        excluded[row, : len(flags)] = flags == 0
    if excluded.all(axis=1).any():
        raise ValueError("no token is allowed")
    with torch.inference_mode():
        values = torch.stack(tables)  # [rows, vocab]
        table = torch.log_softmax(values.masked_fill(torch.from_numpy(excluded).to(values.device), -math.inf), dim=-1)
        ids, logprobs = top_k(table, _TOP)
    return [Distribution(*_possible(ids[row], logprobs[row]), table, row) for row in range(len(unmasked))]


def _possible(ids: list[int], logprobs: list[float]) -> tuple[Ids, tuple[float, ...]]:
    """The tokens and log-probabilities without those of probability 0, which are last."""
    count = sum(value > -math.inf for value in logprobs)
    return tuple(ids[:count]), tuple(logprobs[:count])


def distributions(logits: torch.Tensor) -> list[Distribution]:
    """The distribution of each row of `[rows, vocab]` logits. Overwrites the logits.

    Raises:
        FloatingPointError: A logit is NaN or infinite.
    """
    with torch.inference_mode():
        table = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        finite = torch.ones((), dtype=torch.bool, device=table.device)
        for start in range(0, len(table), _BLOCK_ROWS):  # a second table would be the largest tensor of a scoring pass
            block = table[start : start + _BLOCK_ROWS]
            finite &= torch.isfinite(block).all()
            table[start : start + _BLOCK_ROWS] = torch.log_softmax(block, dim=-1)
        ids, values = top_k(table, _TOP, valid=finite)
    return [Distribution(tuple(ids[row]), tuple(values[row]), table, row) for row in range(len(ids))]


def gather(wanted: Sequence[tuple[Distribution, int]]) -> list[float]:
    """Log-probability of each token in its distribution. One transfer per table, none for the likeliest tokens."""
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


def top_k(
    values: torch.Tensor, count: int, *, valid: torch.Tensor | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Indices and values of the `count` highest of each row `[rows, vocab]`, highest first; ties in order of index.

    Raises:
        FloatingPointError: `valid`, a boolean scalar on the device of the values, is false.
    """
    count = min(count, values.shape[-1])
    top, index = torch.topk(values, min(count + 1, values.shape[-1]), dim=-1)  # one more, which may equal the last
    ties = (top[:, 1:] == top[:, :-1]).any()
    top, index = top[:, :count], index[:, :count]
    indices, highest, flags = _to_numpy(index, top, ties[None] if valid is None else torch.stack([ties, ~valid]))
    if flags[1:].any():
        raise FloatingPointError("NaN or infinite logits")
    if flags[0]:  # `torch.topk` does not define the order of equal values
        top, index = torch.sort(values, dim=-1, descending=True, stable=True)
        indices, highest = _to_numpy(index[:, :count], top[:, :count])
    return indices.tolist(), highest.tolist()


def _to_numpy(*tensors: torch.Tensor) -> list[Any]:
    """Copies of tensors on one device as arrays, in one transfer."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    content = np.asarray(torch.cat(parts).cpu())
    ends = np.cumsum([len(part) for part in parts])
    arrays = []
    for tensor, end, part in zip(tensors, ends, parts, strict=True):
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        arrays.append(content[end - len(part) : end].copy().view(dtype).reshape(tensor.shape))
    return arrays
