"""Which KV memories a loaded model can be trusted with, found out by running it on a few tokens.

The name of a model's class decides nothing.
"""

from __future__ import annotations

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.cache_growth import CacheUse
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.forward import Model
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import LENGTH, CacheTrial, StoreTrial, windows

_MOST_WORK = {"cpu": 2e11, "cuda": 1e14}  # weights times tokens: what trying out a sliding window may cost


def tree_problem(model: Model, *, own_attention: bool = False, fixed: FixedPasses | None = None) -> str | None:
    """Why token trees can't be used with this model; None if they reproduce fresh forward passes.

    Args:
        model: The loaded model.
        own_attention: Whether the user chose its attention implementation.
        fixed: Run small passes in fixed shapes; they are recorded and replayed.
    """
    config = model.module.config.get_text_config()
    if own_attention:
        return "attn_implementation was given"
    if not getattr(model.module, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    if (problem := _untried(model)) is not None:
        return problem
    before = model.module.config._attn_implementation
    length = max(windows(config), default=0) + LENGTH
    fresh = StoreTrial(model, length)
    try:
        model.module.set_attn_implementation(NAME)
        store = TreeStore(model, chunk=max(LENGTH // 3, length // 2), fixed=fixed)
        problem = fresh.problem(store)
        layers = store.layers_held(fresh.memo)
        if fixed is not None and problem is None:  # the second pass of a shape is a recorded one
            problem = fresh.problem(store)
            if fixed.problem is not None:
                raise fixed.problem
        return problem or (None if layers == config.num_hidden_layers else f"only {layers} layers keep keys")
    except Exception as error:  # whatever a model does with a cache that it does not know
        return f"{type(error).__name__}: {error}"
    finally:
        model.module.set_attn_implementation(before)


def store_problem(model: Model, store: Store) -> str | None:
    """Why a store can't be used with this model; None if it reproduces fresh forward passes."""
    try:
        return StoreTrial(model, LENGTH).problem(store)
    except Exception as error:  # whatever a model does with a cache it can't use
        return f"{type(error).__name__}: {error}"


def tried_cache(model: Model) -> tuple[CacheUse | None, str]:
    """What the model's own cache can be used for, None for nothing; and what it can't be used for, for people."""
    if problem := _untried(model):
        return None, f", reading anew at every step: {problem}"
    drafts = CacheTrial(model)
    if problem := drafts.problem(CacheUse()) or store_problem(model, PrefillStore(model, CacheUse())):
        return None, f", reading anew at every step: {problem}"
    several_tokens = drafts.problem(CacheUse(several_tokens=True)) is None
    if problem := drafts.problem(CacheUse(several_tokens, several_rows=True)):
        return CacheUse(several_tokens), f", reading branches anew: {problem}"
    return CacheUse(several_tokens, several_rows=True), ""


def _untried(model: Model) -> str | None:
    """Why a trial of a few tokens is impossible, or would not tell how the model reads many."""
    config = model.module.config.get_text_config()
    if (rope := _rope_type(config)) in ("dynamic", "longrope"):
        return f"its {rope} position embeddings depend on the length of a pass"
    window = max(windows(config), default=0)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    if window and weights * (window + LENGTH) > _MOST_WORK.get(model.device.type, _MOST_WORK["cuda"]):
        return f"its attention window of {window} tokens is too long to be tried out on this device"
    return None


def _rope_type(config: object) -> str | None:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("rope_type") if isinstance(rope, dict) else None
