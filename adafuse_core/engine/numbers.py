"""From logits to what the rule reads: log-probabilities and the likeliest tokens."""

from __future__ import annotations

import torch


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
