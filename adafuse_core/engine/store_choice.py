"""Chooses the KV store of a model. A new kind needs a function, a row of `STORES`, and a name in `KV_STORES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.graphs import recorder
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.selftest import probe_cache, store_problem, tree_problem
from adafuse_core.engine.slots import Pool
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.trials import TEXT_LENGTH


@dataclass(frozen=True, kw_only=True)
class StoreChoice:
    """A model's KV store, and the reasons for it.

    Args:
        store: The store.
        problems: Why faster stores were not chosen.
        limits: What the store can't do, to be shown to users.
        recorded: Whether small passes are CUDA graphs.
        forced: Whether the user named the store.
        fallback: Whether it is the last kind in `STORES`, chosen because no other works.
        max_kv_tokens: Most tokens that requests may hold in it; None for no bound, or if the store enforces its own.
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


class UnsupportedSetting(ValueError):
    """A setting, written `name=value`, does not work with a model."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem


@dataclass(frozen=True, kw_only=True)
class _Options:
    """See `choose_store`."""

    cuda_graphs: bool | None
    user_attention: bool
    chunk: int
    max_kv_tokens: int | None


def choose_store(
    model: Model,
    kv_store: str = "auto",
    *,
    cuda_graphs: bool | None = None,
    user_attention: bool = False,
    chunk: int = 512,
    max_kv_tokens: int | None = None,
) -> StoreChoice:
    """The fastest KV store that reproduces the logits of fresh forward passes on this model.

    Args:
        model: The loaded model.
        kv_store: A name in `STORES`, or "auto" for the first one that works.
        cuda_graphs: Whether small passes are CUDA graphs; None for graphs where they work.
        user_attention: Whether the user chose the model's attention implementation, which a tree would replace.
        chunk: Most prompt tokens that one pass reads.
        max_kv_tokens: Most tokens to hold, over all sequences; None for no bound.

    Raises:
        UnsupportedSetting: The named store, or CUDA graphs, do not work with this model.
    """
    options = _Options(cuda_graphs=cuda_graphs, user_attention=user_attention, chunk=chunk, max_kv_tokens=max_kv_tokens)
    problems: list[str] = []
    for kind in STORES if kv_store == "auto" else [kv_store]:
        choice = STORES[kind](model, options)
        if isinstance(choice, str):
            problems.append(f"no {kind}: {choice}")
        elif cuda_graphs and not choice.recorded:
            why = "; ".join(problems) or f"kv_store={kind!r} is not a token tree"
            raise UnsupportedSetting("cuda_graphs=True", f"CUDA graphs need a token tree; {why}")
        elif kv_store == "auto":
            return replace(choice, problems=(*problems, *choice.problems), fallback=kind == [*STORES][-1])
        else:
            return replace(choice, forced=True)
    raise UnsupportedSetting(f"kv_store={kv_store!r}", problems[0])


def _tree(model: Model, options: _Options) -> StoreChoice | str:
    """A tree store, or the reason why it can't be used; the same for the functions below."""
    if (problem := tree_problem(model, user_attention=options.user_attention)) is not None:
        return problem
    fixed: FixedPasses | str | None = None
    if options.cuda_graphs or (options.cuda_graphs is None and model.device.type == "cuda"):
        fixed = _recorded_passes(model, options.max_kv_tokens)
    problems = []
    if isinstance(fixed, str):
        if options.cuda_graphs:
            raise UnsupportedSetting("cuda_graphs=True", fixed)
        problems, fixed = [f"no CUDA graphs: {fixed}"], None
    model.module.set_attn_implementation(NAME)
    store = TreeStore(model, chunk=options.chunk, max_kv_tokens=options.max_kv_tokens, fixed=fixed)
    return StoreChoice(store=store, problems=problems, recorded=fixed is not None, max_kv_tokens=options.max_kv_tokens)


def _recorded_passes(model: Model, max_kv_tokens: int | None) -> FixedPasses | str:
    record = recorder(model)
    if isinstance(record, str):
        return record
    fixed = FixedPasses(model, Pool(model.device, max_kv_tokens), record)
    return tree_problem(model, fixed=fixed) or fixed


def _fork(model: Model, options: _Options) -> StoreChoice | str:
    problem = store_problem(model, ForkStore(model, chunk=TEXT_LENGTH // 3))
    return problem or StoreChoice(store=ForkStore(model, chunk=options.chunk), max_kv_tokens=options.max_kv_tokens)


def _prefill(model: Model, options: _Options) -> StoreChoice | str:
    abilities, limits = probe_cache(model)
    return StoreChoice(store=PrefillStore(model, abilities, max_kv_tokens=options.max_kv_tokens), limits=limits)


# By the name in configs, fastest first; the last one works with any model.
STORES: dict[str, Callable[[Model, _Options], StoreChoice | str]] = {
    "tree": _tree,
    "fork": _fork,
    "prefill": _prefill,
}
