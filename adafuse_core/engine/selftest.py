"""What a loaded model really does, found out by running it on a few tokens instead of by its class name."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import recorder
from adafuse_core.engine.prefill import CacheUse, PrefillStore
from adafuse_core.engine.slots import Pool
from adafuse_core.engine.steps import Steps
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import LENGTH, CacheTrial, StoreTrial, agree, junk, windows
from adafuse_core.member_config import KV_STORES

CHUNK = 512  # most tokens of prompts that one pass reads

_MOST_WORK = {"cpu": 2e11, "cuda": 1e14}  # weights times tokens: what trying out a sliding window may cost


@dataclass(frozen=True)
class Choice:
    """A model's KV memory, why not a better one, whether the user named it, and what it can't do."""

    store: Store
    problems: tuple[str, ...] = ()
    wanted: bool = False
    recorded: bool = False  # whether small passes are CUDA graphs
    limits: str = ""

    def __str__(self) -> str:
        why = "as configured" if self.wanted else "; ".join(self.problems) or "it reproduces fresh passes"
        return f"{self.store.kind}{' with CUDA graphs' if self.recorded else ''}{self.limits} ({why})"


class Unfit(ValueError):
    """A setting does not work with a model.

    Args:
        setting: Its name and value.
        problem: Why.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem


def choose_store(
    model: Model,
    wanted: str = "auto",
    *,
    graphs: bool | None = None,
    own_attention: bool = False,
    chunk: int = CHUNK,
    most: int | None = None,
) -> Choice:
    """The fastest KV memory that reproduces the logits of fresh forward passes on this model.

    Args:
        model: The loaded model.
        wanted: One of `KV_STORES`.
        graphs: Whether small passes are CUDA graphs; None: where that works.
        own_attention: Whether the user chose the model's attention implementation, which a tree would replace.
        chunk: Most tokens of a prompt that one pass reads.
        most: Tokens that the memory of one sequence is meant not to exceed.

    Raises:
        Unfit: The memory that is wanted does not work with this model, or CUDA graphs do not.
    """
    problems: list[str] = []
    for kind in KV_STORES[1:] if wanted == "auto" else [wanted]:
        if kind == "tree":
            problem = tree_problem(model, own_attention=own_attention)
        elif kind == "fork":
            problem = store_problem(model, ForkStore(model, chunk=LENGTH // 3))
        else:
            problem = None
        if problem is None:
            steps = _steps(model, kind, problems, graphs, most)
            store, limits = _store(model, kind, chunk, most, steps)
            return Choice(store, tuple(problems), wanted != "auto", steps is not None, limits)
        problems.append(f"no {kind}: {problem}")
    raise Unfit(f"kv_store={wanted!r}", problems[0])


def is_finite(model: Model) -> bool:
    """Whether the model computes numbers at all; half precision may overflow."""
    return bool(torch.isfinite(model.forward([junk(model, LENGTH)])).all())


def is_causal(model: Model) -> bool:
    """Whether later tokens leave earlier distributions alone; encoder-only models fail this."""
    ids = junk(model, LENGTH)
    changed = [*ids[:-1], ids[0]]
    return agree(model.forward([ids])[0, :-1], model.forward([changed])[0, :-1], model.module.dtype)


def tree_problem(model: Model, *, own_attention: bool = False, steps: Steps | None = None) -> str | None:
    """Why token trees can't be used with this model; None if they reproduce fresh forward passes.

    Args:
        model: The loaded model.
        own_attention: Whether the user chose its attention implementation.
        steps: Run small passes so; they are recorded and replayed.
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
        store = TreeStore(model, chunk=max(LENGTH // 3, length // 2), steps=steps)
        problem = fresh.problem(store)
        layers = store.layers_held(fresh.memo)
        if steps is not None and problem is None:  # the second pass of a shape is a recorded one
            problem = fresh.problem(store)
            if steps.problem is not None:
                raise steps.problem
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
    """What the model's own cache can be trusted with, None for nothing; and why not with more, for people."""
    if problem := _untried(model):
        return None, f", reading anew at every step: {problem}"
    drafts = CacheTrial(model)
    if problem := drafts.problem(CacheUse()) or store_problem(model, PrefillStore(model, CacheUse())):
        return None, f", reading anew at every step: {problem}"
    several_tokens = drafts.problem(CacheUse(several_tokens=True)) is None
    if problem := drafts.problem(CacheUse(several_tokens, several_rows=True)):
        return CacheUse(several_tokens), f", reading branches anew: {problem}"
    return CacheUse(several_tokens, several_rows=True), ""


def tokens_in_free_memory(model: Model) -> int | None:
    """How many tokens' keys and values fit into half of the device's free memory; None if that is not known."""
    cache = model.new_cache()
    sizes = []
    try:
        for _ in range(2):  # what the second text adds: recurrent states do not grow
            model.forward([junk(model, LENGTH)], cache)
            tensors = [tensor for layer in cache.layers for tensor in vars(layer).values() if torch.is_tensor(tensor)]
            sizes.append(sum(tensor.nbytes for tensor in tensors))
    except Exception:  # a model that can't use a cache
        return None
    size = sizes[1] - sizes[0]
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        return None
    return int(free // 2 // (size / LENGTH)) if size else None


def _steps(model: Model, kind: str, problems: list[str], graphs: bool | None, most: int | None) -> Steps | None:
    """Recorded passes, where they are wanted and reproduce fresh ones; else adds why not to the problems."""
    if graphs is False or (graphs is None and (kind != "tree" or model.device.type != "cuda")):
        return None
    steps = _recorded_steps(model, kind, problems, most)
    if isinstance(steps, Steps):
        return steps
    if graphs:
        raise Unfit("cuda_graphs=True", steps)
    problems.append(f"no CUDA graphs: {steps}")
    return None


def _recorded_steps(model: Model, kind: str, problems: list[str], most: int | None) -> Steps | str:
    if kind != "tree":
        return f"they need a token tree; {'; '.join(problems) or f'kv_store={kind!r} has none'}"
    record = recorder(model)
    if isinstance(record, str):
        return record
    steps = Steps(model, Pool(model.device, most), record)
    return tree_problem(model, steps=steps) or steps


def _store(model: Model, kind: str, chunk: int, most: int | None, steps: Steps | None) -> tuple[Store, str]:
    if kind == "tree":
        model.module.set_attn_implementation(NAME)
        return TreeStore(model, chunk=chunk, most=most, steps=steps), ""
    if kind == "fork":
        return ForkStore(model, chunk=chunk), ""
    use, limits = tried_cache(model)
    return PrefillStore(model, use), limits


def _untried(model: Model) -> str | None:
    """Why a trial of a few tokens can't be made, or would not tell how the model reads many."""
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
