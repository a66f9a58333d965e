"""Finds out which KV stores are exact for a loaded model, by running the model on a few tokens.

The name of a model's class is never considered. Sliding windows are shortened meanwhile, so that a few tokens reach
beyond them; only a model whose windows can't be shortened is tested on long texts.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from adafuse_core.engine.attention import tree_attention
from adafuse_core.engine.attention_windows import attention_windows, shortened
from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.forward import Model
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.rounding import TEXT_LENGTH, agree, logprobs, sample_ids
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import SINGLE_STEPS, CacheTrial, StoreTrial

_MAX_WORK = {"cpu": 2e11, "cuda": 1e14}  # weights times tokens: bound on the cost of testing a long window
_SHORT_WINDOW = 8
_TRIAL_NAME = "adafuse_tree_trial"
_windows_seen: ContextVar[set[int | None]] = ContextVar("windows_seen")  # by the attention of the trial in this thread


@dataclass(frozen=True)
class TreeTest:
    """The result of `try_tree`.

    Args:
        problem: Why token trees can't be used; None if they reproduce fresh forward passes.
        bytes_per_token: Bytes of the keys and values of one token.
    """

    problem: str | None
    bytes_per_token: float = 0.0


def try_tree(model: Model, *, user_attention: bool = False, fixed: FixedPasses | None = None) -> TreeTest:
    """Try out a token tree.

    `user_attention` says whether the user chose its attention implementation. `fixed` runs small passes in fixed
    shapes, recorded and replayed.
    """
    if user_attention:
        return TreeTest("attn_implementation was given")
    if not getattr(model.module, "_supports_attention_backend", False):
        return TreeTest("its attention can't be replaced")
    if (problem := _untestable(model)) is not None:
        return TreeTest(problem)
    windows = attention_windows(model.module.config.get_text_config())
    if windows:
        with shortened(model, _SHORT_WINDOW):
            result, seen = _tree_trial(model, TEXT_LENGTH, fixed)
        if seen - {None} == {min(_SHORT_WINDOW, *windows)} and (result.problem is None or _can_shorten(model)):
            return result  # a long text would hide errors of one token
        if (problem := _too_long(model)) is not None:
            return TreeTest(result.problem or problem)
    return _tree_trial(model, max(windows, default=0) + TEXT_LENGTH, fixed)[0]


def _tree_trial(model: Model, length: int, fixed: FixedPasses | None) -> tuple[TreeTest, set[int | None]]:
    """The result of one trial, and the lengths of the windows that the model asked for."""
    before = model.module.config._attn_implementation
    seen: set[int | None] = set()
    token = _windows_seen.set(seen)
    try:
        trial = StoreTrial(model, length)
        model.module.set_attn_implementation(_TRIAL_NAME)
        store = TreeStore(model, chunk=length // 2, fixed=fixed)
        problem = trial.problem(store)
        if fixed is not None and problem is None:  # the second pass of each shape is recorded
            problem = trial.problem(store)
            if fixed.problem is not None:
                raise fixed.problem
        layers, expected = store.layers_held(trial.memo), model.module.config.get_text_config().num_hidden_layers
        if problem is None and layers != expected:
            problem = f"only {layers} layers keep keys"
        return TreeTest(problem, _bytes_per_token(trial.memo.kv.memory.layers) if fixed is None else 0.0), seen
    except Exception as error:  # the model may do anything with an unknown cache
        return TreeTest(f"{type(error).__name__}: {error}"), seen
    finally:
        _windows_seen.reset(token)
        model.module.set_attn_implementation(before)


def _bytes_per_token(layers: dict[int, dict[str, torch.Tensor]]) -> float:
    """Bytes of one slot of tensors `[1, kv_heads, slots, dim]`."""
    return sum(tensor.nbytes / tensor.shape[2] for layer in layers.values() for tensor in layer.values())


def _recording_attention(*inputs: Any, sliding_window: int | None = None, **options: Any) -> tuple[torch.Tensor, None]:
    _windows_seen.get().add(sliding_window)
    return tree_attention(*inputs, sliding_window=sliding_window, **options)


AttentionInterface.register(_TRIAL_NAME, _recording_attention)


def store_problem(model: Model, store: Store, *, batch: bool = True) -> str | None:
    """Why a store can't be used with this model; None if it reproduces fresh forward passes.

    `batch` says whether one padded batch gives the distributions to compare with.
    """
    try:
        with shortened(model, _SHORT_WINDOW):
            problem = StoreTrial(model, draft=SINGLE_STEPS, batch=batch).problem(store)
        if problem is None or not attention_windows(model.module.config.get_text_config()) or _can_shorten(model):
            return problem
        return StoreTrial(model, draft=SINGLE_STEPS, batch=batch).problem(store)
    except Exception as error:  # the model may do anything with a cache that it can't use
        return f"{type(error).__name__}: {error}"


def probe_cache(model: Model) -> tuple[CacheAbilities | None, str]:
    """What the model's own cache supports, None for nothing; and its limits, to be shown to users."""
    window = max(attention_windows(model.module.config.get_text_config()), default=0)
    problem = _untestable(model)
    if problem is None and window:
        if _can_shorten(model):
            with shortened(model, _SHORT_WINDOW):
                return _probe_cache(model, min(window, _SHORT_WINDOW))
        problem = _too_long(model)
    if problem is not None:
        return None, f", recomputing the context at every step: {problem}"
    return _probe_cache(model, window)


def _probe_cache(model: Model, window: int) -> tuple[CacheAbilities | None, str]:
    trial = CacheTrial(model, window)
    plain = PrefillStore(model, CacheAbilities())
    if problem := trial.problem(CacheAbilities()) or store_problem(model, plain, batch=False):
        return None, f", recomputing the context at every step: {problem}"
    several_tokens = trial.problem(CacheAbilities(several_tokens=True)) is None
    if problem := trial.problem(CacheAbilities(several_tokens, several_rows=True)):
        return CacheAbilities(several_tokens), f", recomputing the context of branches: {problem}"
    return CacheAbilities(several_tokens, several_rows=True), ""


def _can_shorten(model: Model) -> bool:
    """Whether shorter windows change the distributions of fresh passes."""
    text = tuple(sample_ids(model, 3 * _SHORT_WINDOW))
    whole = logprobs(model, text, 1)
    with shortened(model, _SHORT_WINDOW):
        return not agree(model, logprobs(model, text, 1), whole)


def _untestable(model: Model) -> str | None:
    """Why a test on a few tokens proves nothing about long contexts; None if it is valid."""
    rope = getattr(model.module.config.get_text_config(), "rope_parameters", None)
    if isinstance(rope, dict) and (kind := rope.get("rope_type")) in ("dynamic", "longrope"):
        return f"its {kind} position embeddings depend on the length of a pass"
    return None


def _too_long(model: Model) -> str | None:
    """Why windows that can't be shortened can't be tested either; None if they can."""
    window = max(attention_windows(model.module.config.get_text_config()), default=0)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    if weights * (window + TEXT_LENGTH) > _MAX_WORK.get(model.device.type, _MAX_WORK["cuda"]):
        return f"its attention window of {window} tokens is too long to be tested on this device"
    return None
