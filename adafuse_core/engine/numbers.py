"""From logits to what the rule reads: log-probabilities and the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adafuse_core.text.tokens import Ids

_ROWS = 16  # of logits that are made log-probabilities at a time
_AT_HAND = 8  # likeliest tokens that are read with every distribution


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution: its likeliest tokens at hand, the whole of it as a row of a table.

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
        return _possible(*likeliest(self.table[self.row][None], count))

    def given(self, allowed: bytes) -> Distribution:
        """The distribution on condition that the next token is one of the allowed: theirs add up to one.

        Args:
            allowed: One bit for each token, lowest first.

        Raises:
            ValueError: No token of the table is allowed.
        """
        values = self.table[self.row]
        flags = np.unpackbits(np.frombuffer(allowed, dtype=np.uint8), bitorder="little")[: len(values)]
        possible = int(flags.sum())
        if not possible:
            raise ValueError("no token is allowed")
        barred = torch.ones(len(values), dtype=torch.bool)
        barred[: len(flags)] = torch.from_numpy(flags == 0)
        with torch.inference_mode():
            table = torch.log_softmax(values.masked_fill(barred.to(values.device), -math.inf), dim=-1)[None]
            ids, logprobs = likeliest(table, min(_AT_HAND, possible))
        return Distribution(tuple(ids[0]), tuple(logprobs[0]), table, 0)


def _possible(ids: list[list[int]], values: list[list[float]]) -> tuple[Ids, tuple[float, ...]]:
    """The first row, without what has no probability."""
    count = sum(value > -math.inf for value in values[0])
    return tuple(ids[0][:count]), tuple(values[0][:count])


def distributions(logits: torch.Tensor) -> list[Distribution]:
    """What each row of `[rows, vocab]` says of the next token. Its memory is used for the result.

    Raises:
        FloatingPointError: A logit is NaN or infinite.
    """
    with torch.inference_mode():
        table = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        for start in range(0, len(table), _ROWS):  # a second table would be the largest tensor of a scoring pass
            table[start : start + _ROWS] = logprobs(table[start : start + _ROWS])
        ids, values = likeliest(table, _AT_HAND)
    return [Distribution(tuple(ids[row]), tuple(values[row]), table, row) for row in range(len(ids))]


def gather(wanted: Sequence[tuple[Distribution, int]]) -> list[float]:
    """Log-probabilities of tokens, each in its distribution; one transfer per table."""
    by_table: dict[int, list[int]] = {}
    for index, (distribution, _) in enumerate(wanted):
        by_table.setdefault(id(distribution.table), []).append(index)
    values = [0.0] * len(wanted)
    for indices in by_table.values():
        table = wanted[indices[0]][0].table
        rows = torch.tensor([wanted[index][0].row for index in indices], device=table.device)
        tokens = torch.tensor([wanted[index][1] for index in indices], device=table.device)
        for index, value in zip(indices, table[rows, tokens].tolist(), strict=True):
            values[index] = value
    return values


def logprobs(logits: torch.Tensor) -> torch.Tensor:
    """Natural log-probabilities over the last dimension; half precision is computed in float32.

    Raises:
        FloatingPointError: A logit is NaN or infinite.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if not torch.isfinite(logits).all():
        raise FloatingPointError("NaN or infinite logits")
    return torch.log_softmax(logits, dim=-1)


def likeliest(values: torch.Tensor, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` highest of each row, highest first; equal ones go by the lower index.

    Args:
        values: `[rows, vocab]`.

    Returns:
        Indices and values, `[rows][count]`.
    """
    count = min(count, values.shape[-1])
    top, index = torch.topk(values, count, dim=-1)  # [rows, count]
    ties = (top[:, 1:] == top[:, :-1]).any() or ((values >= top[:, -1:]).sum(dim=-1) > count).any()
    if ties:  # topk leaves the order of equal values open
        top, index = torch.sort(values, dim=-1, descending=True, stable=True)
        top, index = top[:, :count], index[:, :count]
    return index.tolist(), top.tolist()
