"""Chooses a model's KV memory. A further kind is one opener, one row of `STORES` and one name in `KV_STORES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import recorder
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.selftest import store_problem, tree_problem, tried_cache
from adafuse_core.engine.slots import Pool
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import LENGTH

CHUNK = 512  # most tokens of prompts that one pass reads


@dataclass(frozen=True, kw_only=True)
class StoreChoice:
    """A model's KV memory, and why it was chosen.

    Args:
        store: The memory.
        problems: Why no better one was chosen.
        limits: What it can't do, for people.
        recorded: Whether small passes are CUDA graphs.
        forced: Whether the user named it.
        fallback: Whether it is the last resort, and the user did not name it.
        max_kv_tokens: Most tokens that requests may hold in it. None: no bound, or the store keeps to it by itself.
    """

    store: Store
    problems: Sequence[str] = ()
    limits: str = ""
    recorded: bool = False
    forced: bool = False
    fallback: bool = False
    max_kv_tokens: int | None = None

    def __str__(self) -> str:
        why = "as configured" if self.forced else "; ".join(self.problems) or "it reproduces fresh passes"
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


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """What is asked of a store; see `choose_store`."""

    graphs: bool | None
    own_attention: bool
    chunk: int
    most: int | None


def choose_store(
    model: Model,
    wanted: str = "auto",
    *,
    graphs: bool | None = None,
    own_attention: bool = False,
    chunk: int = CHUNK,
    most: int | None = None,
) -> StoreChoice:
    """The fastest KV memory that reproduces the logits of fresh forward passes on this model.

    Args:
        model: The loaded model.
        wanted: A name in `STORES`, or "auto" for the first one that works.
        graphs: Whether small passes are CUDA graphs; None: where that works.
        own_attention: Whether the user chose the model's attention implementation, which a tree would replace.
        chunk: Most tokens of a prompt that one pass reads.
        most: Most tokens to hold, over all sequences; None for no bound.

    Raises:
        Unfit: The memory that is wanted does not work with this model, or CUDA graphs do not.
    """
    wishes = _Wishes(graphs=graphs, own_attention=own_attention, chunk=chunk, most=most)
    problems: list[str] = []
    for kind in STORES if wanted == "auto" else [wanted]:
        choice = STORES[kind](model, wishes)
        if isinstance(choice, str):
            problems.append(f"no {kind}: {choice}")
        elif graphs and not choice.recorded:
            why = "; ".join(problems) or f"kv_store={kind!r} has none"
            raise Unfit("cuda_graphs=True", f"they need a token tree; {why}")
        elif wanted == "auto":
            return replace(choice, problems=(*problems, *choice.problems), fallback=kind == [*STORES][-1])
        else:
            return replace(choice, forced=True)
    raise Unfit(f"kv_store={wanted!r}", problems[0])


def _open_tree(model: Model, wishes: _Wishes) -> StoreChoice | str:
    if (problem := tree_problem(model, own_attention=wishes.own_attention)) is not None:
        return problem
    fixed: FixedPasses | str | None = None
    if wishes.graphs or (wishes.graphs is None and model.device.type == "cuda"):
        fixed = _recorded_passes(model, wishes.most)
    problems = []
    if isinstance(fixed, str):
        if wishes.graphs:
            raise Unfit("cuda_graphs=True", fixed)
        problems, fixed = [f"no CUDA graphs: {fixed}"], None
    model.module.set_attn_implementation(NAME)
    store = TreeStore(model, chunk=wishes.chunk, most=wishes.most, fixed=fixed)
    return StoreChoice(store=store, problems=problems, recorded=fixed is not None, max_kv_tokens=wishes.most)


def _recorded_passes(model: Model, most: int | None) -> FixedPasses | str:
    """Small passes of a tree as CUDA graphs, or why they can't be."""
    record = recorder(model)
    if isinstance(record, str):
        return record
    fixed = FixedPasses(model, Pool(model.device, most), record)
    return tree_problem(model, fixed=fixed) or fixed


def _open_fork(model: Model, wishes: _Wishes) -> StoreChoice | str:
    problem = store_problem(model, ForkStore(model, chunk=LENGTH // 3))
    return problem or StoreChoice(store=ForkStore(model, chunk=wishes.chunk), max_kv_tokens=wishes.most)


def _open_prefill(model: Model, wishes: _Wishes) -> StoreChoice | str:
    use, limits = tried_cache(model)
    return StoreChoice(store=PrefillStore(model, use, max_kv_tokens=wishes.most), limits=limits)


# By the name that users give, the fastest first; the last one works with any model.
STORES: dict[str, Callable[[Model, _Wishes], StoreChoice | str]] = {
    "tree": _open_tree,
    "fork": _open_fork,
    "prefill": _open_prefill,
}
