"""Chooses the KV store of a model. A new kind needs a class, a row of `STORES`, and a name in `KV_STORES`.

The choice has two steps: `examine` runs the model to find out what works, `open_store` creates the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from adafuse_core.engine.attention import NAME
from adafuse_core.engine.fixed_passes import FixedPasses
from adafuse_core.engine.fork import ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.free_memory import bytes_per_token
from adafuse_core.engine.graphs import recorder
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.rounding import TEXT_LENGTH, measure_rounding, rounding_note
from adafuse_core.engine.selftest import probe_cache, store_problem, try_tree
from adafuse_core.engine.slots import Pool
from adafuse_core.engine.store import Store
from adafuse_core.engine.tree import TreeStore
from adafuse_core.engine.verdict import Verdict


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
        tested: When the model was tested, if the verdict was read from disk.
        max_kv_tokens: Most tokens that requests may hold in it; None for no bound, or if the store enforces its own.
    """

    store: Store
    problems: Sequence[str] = ()
    limits: str = ""
    recorded: bool = False
    forced: bool = False
    fallback: bool = False
    tested: str | None = None
    max_kv_tokens: int | None = None

    def __str__(self) -> str:
        why = "as configured" if self.forced else "; ".join(self.problems) or "it reproduces fresh passes"
        when = "" if self.tested is None else f"; tested on {self.tested}, verdict read from disk"
        return f"{self.store.kind}{' with CUDA graphs' if self.recorded else ''}{self.limits} ({why}{when})"


class UnsupportedSetting(ValueError):
    """A setting, written `name=value`, does not work with a model."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user wants of a store.

    Args:
        kv_store: A name in `STORES`, or "auto" for the first one that works.
        cuda_graphs: Whether small passes are CUDA graphs; None for graphs where they work.
        user_attention: Whether the user chose the model's attention implementation, which a tree would replace.
    """

    kv_store: str = "auto"
    cuda_graphs: bool | None = None
    user_attention: bool = False


def choose_store(
    model: Model,
    kv_store: str = "auto",
    *,
    cuda_graphs: bool | None = None,
    user_attention: bool = False,
    chunk: int = 512,
    max_kv_tokens: int | None = None,
) -> StoreChoice:
    """Test a model, and open the fastest store that works; see `Options`, `examine` and `open_store`."""
    options = Options(kv_store=kv_store, cuda_graphs=cuda_graphs, user_attention=user_attention)
    return open_store(model, examine(model, options), chunk=chunk, max_kv_tokens=max_kv_tokens)


def examine(model: Model, options: Options) -> Verdict:
    """Find the fastest KV store that reproduces the logits of fresh forward passes on this model.

    Raises:
        UnsupportedSetting: The named store, or CUDA graphs, do not work with this model.
    """
    problems: list[str] = []
    automatic = options.kv_store == "auto"
    measure_rounding(model)
    for kind in STORES if automatic else [options.kv_store]:
        found = STORES[kind].examine(model, options)
        if isinstance(found, str):
            problems.append(f"no {kind}: {found}")
            continue
        found = replace(found, limits=found.limits + rounding_note(model))
        if options.cuda_graphs and not found.recorded:
            why = "; ".join(problems) or f"kv_store={kind!r} is not a token tree"
            raise UnsupportedSetting("cuda_graphs=True", f"CUDA graphs need a token tree; {why}")
        if automatic:
            return replace(found, problems=(*problems, *found.problems), fallback=kind == [*STORES][-1])
        return replace(found, forced=True)
    raise UnsupportedSetting(f"kv_store={options.kv_store!r}", problems[0])


def open_store(
    model: Model, verdict: Verdict, *, chunk: int = 512, max_kv_tokens: int | None = None, tested: str | None = None
) -> StoreChoice:
    """Create the store of a verdict.

    Args:
        model: The model that was tested.
        verdict: The result of `examine`.
        chunk: Most prompt tokens that one pass reads.
        max_kv_tokens: Most tokens to hold, over all sequences; None for no bound.
        tested: When the model was tested, if that was earlier.
    """
    kind = STORES[verdict.kind]
    return StoreChoice(
        store=kind.open(model, verdict, chunk, max_kv_tokens),
        problems=verdict.problems,
        limits=verdict.limits,
        recorded=verdict.recorded,
        forced=verdict.forced,
        fallback=verdict.fallback,
        tested=tested,
        max_kv_tokens=None if kind.enforces_bound else max_kv_tokens,
    )


class Kind(Protocol):
    """One kind of KV store."""

    enforces_bound: bool  # whether the store itself obeys `max_kv_tokens`

    def examine(self, model: Model, options: Options) -> Verdict | str:
        """The verdict for this store, or the reason why it can't be used."""

    def open(self, model: Model, verdict: Verdict, chunk: int, max_kv_tokens: int | None) -> Store:
        """Create the store for a model with this verdict."""


class _Tree:
    enforces_bound = False

    def examine(self, model: Model, options: Options) -> Verdict | str:
        test = try_tree(model, user_attention=options.user_attention)
        if test.problem is not None:
            return test.problem
        problem: str | None = "not wanted"
        problems: tuple[str, ...] = ()
        if options.cuda_graphs or (options.cuda_graphs is None and model.device.type == "cuda"):
            passes = _recorded_passes(model, None)
            problem = passes if isinstance(passes, str) else try_tree(model, fixed=passes).problem
            if problem is not None and options.cuda_graphs:
                raise UnsupportedSetting("cuda_graphs=True", problem)
            problems = () if problem is None else (f"no CUDA graphs: {problem}",)
        return Verdict(kind="tree", problems=problems, recorded=problem is None, bytes_per_token=test.bytes_per_token)

    def open(self, model: Model, verdict: Verdict, chunk: int, max_kv_tokens: int | None) -> Store:
        fixed = _recorded_passes(model, max_kv_tokens) if verdict.recorded else None
        assert not isinstance(fixed, str), fixed
        model.module.set_attn_implementation(NAME)
        return TreeStore(model, chunk=chunk, max_kv_tokens=max_kv_tokens, fixed=fixed)


def _recorded_passes(model: Model, max_kv_tokens: int | None) -> FixedPasses | str:
    record = recorder(model)
    return record if isinstance(record, str) else FixedPasses(model, Pool(model.device, max_kv_tokens), record)


class _Fork:
    enforces_bound = False

    def examine(self, model: Model, options: Options) -> Verdict | str:
        problem = store_problem(model, ForkStore(model, chunk=TEXT_LENGTH // 3))
        return problem or Verdict(kind="fork", bytes_per_token=bytes_per_token(model))

    def open(self, model: Model, verdict: Verdict, chunk: int, max_kv_tokens: int | None) -> Store:
        return ForkStore(model, chunk=chunk)


class _Prefill:
    enforces_bound = True

    def examine(self, model: Model, options: Options) -> Verdict | str:
        abilities, limits = probe_cache(model)
        return Verdict(kind="prefill", abilities=abilities, limits=limits, bytes_per_token=bytes_per_token(model))

    def open(self, model: Model, verdict: Verdict, chunk: int, max_kv_tokens: int | None) -> Store:
        return PrefillStore(model, verdict.abilities, max_kv_tokens=max_kv_tokens)


# By the name in configs, fastest first; the last one works with any model.
STORES: dict[str, Kind] = {"tree": _Tree(), "fork": _Fork(), "prefill": _Prefill()}
