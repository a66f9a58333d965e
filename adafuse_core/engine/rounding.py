"""How far logits may differ by rounding alone: a bound for each dtype, raised by a measurement for quantized models.

A model rounds differently if it reads the same text together with other tokens. The difference is far larger if
activations are quantized while the model runs (bitsandbytes int8, torchao's dynamic types), so that is measured.
"""

from __future__ import annotations

import math

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.text.ids import Ids

TEXT_LENGTH = 12  # tokens of a test's text, beyond any attention window

# All differences are relative to the standard deviation of the logits. In these dtypes the largest one counts; norms
# run in float32 anyway.
_EXACT = {torch.float64: 1e-4, torch.float32: 3e-4}
# In half precision the root mean square over the vocabulary. The largest difference would depend on the size of the
# vocabulary: it is 0.6 in models with 262,144 tokens whose bfloat16 logits are as right as they can be.
_HALF = 0.08
_MARGIN = 2.0  # cached passes differed from fresh ones by 0.6 to 1.7 times the measured error
# A context without one of its tokens may differ by as little as this.
_MOST = 1.0
_MOST_OF_HALF = 0.25
_CUTS = (1, 3, TEXT_LENGTH)


def measure_rounding(model: Model) -> None:
    """Measure how far the passes of a quantized model differ that read the same contexts beside other tokens."""
    if _is_quantized(model):
        model.rounding_error = max(_error_of_cuts(model), _error_in_batch(model))


def agree(model: Model, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether logits `[..., vocab]` of the same contexts differ only by rounding; see `measure_rounding`."""
    return _difference(model, first, second) < _tolerance(model, model.rounding_error)


def agree_in_batch(model: Model, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether logits differ only by rounding, or by what other rows of a batch change."""
    found = _difference(model, first, second)
    return found < _expected(model) or (_is_quantized(model) and found < _tolerance(model, _error_in_batch(model)))


def rounding_note(model: Model) -> str:
    """The measured rounding error, to be shown to users; empty if it is usual for the dtype."""
    if model.rounding_error <= _expected(model):
        return ""
    return f", rounding errors up to {model.rounding_error:.2g} standard deviations of the logits"


def sample_ids(model: Model, length: int, stride: int = 31) -> list[int]:
    """Arbitrary token ids, spread over the vocabulary; neighbours differ."""
    while math.gcd(stride, model.vocab_size) > 1:  # else the ids would be the same few again and again
        stride += 1
    return [(7 + stride * index) % model.vocab_size for index in range(length)]


def logprobs(model: Model, text: Ids, last: int) -> torch.Tensor:
    """Log-probabilities of a fresh pass after each of the `last` tokens, `[last, vocab]`."""
    logits = model.forward([text], last=last)[0]
    return torch.log_softmax(logits.to(exact_dtype(logits.dtype)), dim=-1)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The data type for comparisons: half precision would round the log-probabilities."""
    return torch.promote_types(dtype, torch.float32)


def _is_quantized(model: Model) -> bool:
    return getattr(model.module.config, "quantization_config", None) is not None


def _expected(model: Model) -> float:
    return _EXACT.get(model.module.dtype, _HALF)


def _tolerance(model: Model, error: float) -> float:
    most = _MOST if model.module.dtype in _EXACT else _MOST_OF_HALF
    return max(_expected(model), min(_MARGIN * error, most))


def _difference(model: Model, first: torch.Tensor, second: torch.Tensor) -> float:
    exact = exact_dtype(first.dtype)
    first, second = first.to(exact), second.to(exact)
    difference = (first - second) / second.std().clamp(min=1e-6)
    if model.module.dtype in _EXACT:
        return float(difference.abs().max())
    return float(difference.std(dim=-1, correction=0).max())


def _error_of_cuts(model: Model) -> float:
    """The largest difference between passes that read the same contexts with and without later tokens."""
    ids = sample_ids(model, 2 * TEXT_LENGTH)
    whole = model.forward([ids])[0]
    return max(_difference(model, model.forward([ids[:cut]])[0], whole[:cut]) for cut in _CUTS)


def _error_in_batch(model: Model) -> float:
    """The largest difference that other rows of a batch make."""
    ids, *others = (sample_ids(model, TEXT_LENGTH, stride) for stride in (31, 17, 101))
    return _difference(model, model.forward([ids, *others])[0], model.forward([ids])[0])
