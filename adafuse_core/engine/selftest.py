"""Finds out which KV stores are exact for a loaded model, by running the model on a few tokens.

The name of a model's class is never considered.
"""

from __future__ import annotations

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.cache_growth import CacheAbilities
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.forward import Model
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import TEXT_LENGTH, CacheTrial, StoreTrial, attention_windows

_MAX_WORK = {"cpu": 2e11, "cuda": 1e14}  # weights times tokens: bound on the cost of testing a sliding window


def tree_problem(model: Model, *, user_attention: bool = False, fixed: FixedPasses | None = None) -> str | None:
    """Why token trees can't be used with this model; None if they reproduce fresh forward passes.

    `user_attention` says whether the user chose its attention implementation. `fixed` runs small passes in fixed
    shapes, recorded and replayed.
    """
    config = model.module.config.get_text_config()
    if user_attention:
        return "attn_implementation was given"
    if not getattr(model.module, "_supports_attention_backend", False):
        return "its attention can't be replaced"
    if (problem := _untestable(model)) is not None:
        return problem
    before = model.module.config._attn_implementation
    length = max(attention_windows(config), default=0) + TEXT_LENGTH
    trial = StoreTrial(model, length)
    try:
        model.module.set_attn_implementation(NAME)
        store = TreeStore(model, chunk=max(TEXT_LENGTH // 3, length // 2), fixed=fixed)
        problem = trial.problem(store)
        layers = store.layers_held(trial.memo)
        if fixed is not None and problem is None:  # the second pass of each shape is recorded
            problem = trial.problem(store)
            if fixed.problem is not None:
                raise fixed.problem
        return problem or (None if layers == config.num_hidden_layers else f"only {layers} layers keep keys")
    except Exception as error:  # the model may do anything with an unknown cache
        return f"{type(error).__name__}: {error}"
    finally:
        model.module.set_attn_implementation(before)


def store_problem(model: Model, store: Store) -> str | None:
    """Why a store can't be used with this model; None if it reproduces fresh forward passes."""
    try:
        return StoreTrial(model, TEXT_LENGTH).problem(store)
    except Exception as error:  # the model may do anything with a cache that it can't use
        return f"{type(error).__name__}: {error}"


def probe_cache(model: Model) -> tuple[CacheAbilities | None, str]:
    """What the model's own cache supports, None for nothing; and its limits, to be shown to users."""
    if problem := _untestable(model):
        return None, f", recomputing the context at every step: {problem}"
    trial = CacheTrial(model)
    if problem := trial.problem(CacheAbilities()) or store_problem(model, PrefillStore(model, CacheAbilities())):
        return None, f", recomputing the context at every step: {problem}"
    several_tokens = trial.problem(CacheAbilities(several_tokens=True)) is None
    if problem := trial.problem(CacheAbilities(several_tokens, several_rows=True)):
        return CacheAbilities(several_tokens), f", recomputing the context of branches: {problem}"
    return CacheAbilities(several_tokens, several_rows=True), ""


def _untestable(model: Model) -> str | None:
    """Why a test on a few tokens is impossible, or proves nothing about long contexts; None if it is valid."""
    config = model.module.config.get_text_config()
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and (kind := rope.get("rope_type")) in ("dynamic", "longrope"):
        return f"its {kind} position embeddings depend on the length of a pass"
    window = max(attention_windows(config), default=0)
    weights = sum(parameter.numel() for parameter in model.module.parameters())
    if window and weights * (window + TEXT_LENGTH) > _MAX_WORK.get(model.device.type, _MAX_WORK["cuda"]):
        return f"its attention window of {window} tokens is too long to be tested on this device"
    return None
