"""Linear layers for a few rows on a CPU: the weights are read from memory once, not once for every three rows.

A pass over a single token lasts as long as it takes to read the weights. The library that PyTorch uses on x86
processors (MKL) multiplies up to fifteen rows in groups of three, and reads the whole matrix for each group: eight rows
last three times as long as one. Here the matrix is cut into blocks of a few outputs, which stay in the processor's
cache while all rows are multiplied with them. Sums are only formed in another order.
"""

from __future__ import annotations

import torch
from torch import nn

_FEW_ROWS = range(4, 16)  # fewer rows are one group; for more, MKL has other code
_BLOCK = 32  # outputs per block
_MIN_BYTES = 1 << 20  # smaller weights stay in the cache anyway


class FewRowsLinear(nn.Linear):
    """`nn.Linear` that is fast for 4 to 15 rows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` -> `[..., out_features]`."""
        rows = input.numel() // self.in_features
        if rows not in _FEW_ROWS:
            return super().forward(input)
        blocks = self.weight.view(-1, _BLOCK, self.in_features).transpose(1, 2)  # [blocks, in_features, block]
        states = input.reshape(1, rows, self.in_features).expand(len(blocks), -1, -1)  # [blocks, rows, in_features]
        output = torch.bmm(states, blocks).transpose(0, 1).reshape(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


def speed_up_linear_layers(module: nn.Module) -> None:
    """Make the plain linear layers of a model `FewRowsLinear`, where that is faster. Their weights are unchanged."""
    if torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        for layer in module.modules():
            if _profits(layer):
                layer.__class__ = FewRowsLinear


def _profits(layer: nn.Module) -> bool:
    """Whether a layer is a large linear layer in float32 on a CPU, whose outputs can be cut into blocks."""
    weight = getattr(layer, "weight", None)
    if type(layer) is not nn.Linear or type(weight) is not nn.Parameter:  # quantized weights have other types or names
        return False
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()
    return plain and weight.nbytes >= _MIN_BYTES and not layer.out_features % _BLOCK
