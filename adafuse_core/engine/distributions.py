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
_BLOCK = 64  # values of which the highest one tells whether the others matter
_TIES = 24  # further tokens that are compared with them: logits in bfloat16 are often equal


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
            finite &= all_finite(block)
            table[start : start + _BLOCK_ROWS] = torch.log_softmax(block, dim=-1)
        ids, values = top_k(table, _TOP, valid=finite)
    return [Distribution(tuple(ids[row]), tuple(values[row]), table, row) for row in range(len(ids))]


def all_finite(logits: torch.Tensor) -> torch.Tensor:
    """Whether no logit is NaN or infinite, as a boolean scalar on their device."""
    # NaN is both minimum and maximum. On a CPU, testing every logit takes longer than the top-k.
    return torch.isfinite(torch.stack(torch.aminmax(logits))).all()


def check_finite(logits: torch.Tensor) -> None:
    """Raise `FloatingPointError` if a logit is NaN or infinite."""
    if not all_finite(logits):
        raise FloatingPointError("NaN or infinite logits")


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
    """Indices and values of the `count` highest of each row `[rows, vocab]`, highest first.

    Ties are in order of index, except those of -inf.

    Raises:
        FloatingPointError: `valid`, a boolean scalar on the device of the values, is false.
    """
    count = min(count, values.shape[-1])
    top, index = _highest(values, min(count + _TIES, values.shape[-1]))
    valid = torch.ones((), dtype=torch.bool, device=values.device) if valid is None else valid
    indices, highest, flags = _to_numpy(index, top, valid[None])
    if not flags.all():
        raise FloatingPointError("NaN or infinite logits")
    order = np.lexsort((indices, -highest))[:, :count]  # `torch.topk` does not define the order of equal values
    lowest, last = highest[:, count - 1], highest[:, -1]
    indices, highest = (np.take_along_axis(array, order, axis=1) for array in (indices, highest))
    if top.shape[-1] < values.shape[-1]:
        for row in np.flatnonzero((lowest == last) & (last > -math.inf)):
            indices[row], highest[row] = _top_with_many_ties(values[row], count)
    return indices.tolist(), highest.tolist()


def _highest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest values of each row `[rows, vocab]` and their indices, as of `torch.topk`.

    On a CPU every value is read once, to find the blocks with the highest values: `torch.topk` takes ten times as long.
    """
    rows, vocab = values.shape
    if values.device.type != "cpu" or vocab % _BLOCK or vocab <= count * _BLOCK:
        return torch.topk(values, count, dim=-1)
    blocks = values.view(rows, -1, _BLOCK)
    best = torch.topk(blocks.amax(dim=-1), count, dim=-1).indices[:, :, None]  # [rows, count, 1]
    indices = (best * _BLOCK + torch.arange(_BLOCK)).flatten(1)  # [rows, count * block]
    top, found = torch.topk(values.gather(1, indices), count, dim=-1)
    return top, indices.gather(1, found)


def _top_with_many_ties(values: torch.Tensor, count: int) -> list[Any]:
    """Indices and values of the `count` highest values `[vocab]`; ties in order of index. Slow on a CPU."""
    top, index = torch.sort(values, descending=True, stable=True)
    return _to_numpy(index[:count], top[:count])


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
