"""KV memory by forking: contexts are kept as snapshots, every use works on a fork.

A dynamic cache layer *re-binds* its tensors when it grows, so copying the layer objects and sharing the
tensors is an exact snapshot at no cost. Rows that branch are batched on one fork. Nothing is ever cropped,
so sliding-window, chunked and recurrent layers are as exact as full attention. (Measured on twelve model
families; `selftest.py` checks the model at hand.)
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from adafuse_core.engine.forward import Model
from adafuse_core.text.tokens import Ids, shared_length


@dataclass
class Snapshot:
    """A context the model has read: its cache, and the logits after its last token `[vocab]`."""

    cache: Any
    logits: torch.Tensor


class ForkRows:
    """Contexts of one length, decoded in lockstep on one fork."""

    def __init__(self, model: Model, cache: Any, logits: torch.Tensor) -> None:
        self._model = model
        self._cache = cache
        self.logits = logits  # [rows, vocab], after each row's last token

    def step(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        self.logits = self._model.forward([[token] for token in tokens], self._cache, last_only=True)[:, -1]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        index = torch.tensor(rows, device=self.logits.device)
        self._cache.reorder_cache(index)
        self.logits = self.logits[index]


class ForkStore:
    """Snapshots of the contexts to remember, and forks of them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._wanted: Counter[Ids] = Counter()
        self._snapshots: dict[Ids, Snapshot] = {}

    def remember(self, context: Ids) -> None:
        """Keep the snapshot of this context once it is made."""
        with self._lock:
            self._wanted[context] += 1

    def forget(self, context: Ids) -> None:
        """Take back one `remember`."""
        with self._lock:
            self._wanted[context] -= 1
            if self._wanted[context] <= 0:
                del self._wanted[context]
                self._snapshots.pop(context, None)

    def tokens_held(self) -> int:
        """Tokens in all snapshots."""
        with self._lock:
            return sum(map(len, self._snapshots))

    def rows(self, contexts: Sequence[Ids]) -> ForkRows:
        """Rows for contexts of one length that differ in their last token at most."""
        first = contexts[0]
        if len(contexts) == 1:
            snapshot = self._read(first)
            return ForkRows(self._model, _fork(snapshot.cache), snapshot.logits[None])
        shared = min(shared_length(first, context) for context in contexts)
        base = self._read(first[: min(shared, len(first) - 1)])
        cache = _fork(base.cache)
        _repeat(cache, len(contexts))
        rows = ForkRows(self._model, cache, base.logits[None].expand(len(contexts), -1))
        for position in range(min(shared, len(first) - 1), len(first)):
            rows.step([context[position] for context in contexts])
        return rows

    def logits_along(self, context: Ids, continuations: Sequence[Ids]) -> list[torch.Tensor]:
        """Logits before each token of each continuation and after its last: `[len + 1, vocab]` each."""
        base = self._read(context)
        longest = max(map(len, continuations))
        if longest == 0:
            return [base.logits[None] for _ in continuations]
        cache = _fork(base.cache)
        _repeat(cache, len(continuations))
        # Shorter rows are filled up on the right: what comes later can't change what came before.
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in continuations]
        logits = self._model.forward(padded, cache)  # [rows, longest, vocab]
        return [torch.cat([base.logits[None], logits[row, : len(ids)]]) for row, ids in enumerate(continuations)]

    def _read(self, context: Ids) -> Snapshot:
        """The snapshot of a context, from the longest remembered beginning of it."""
        with self._lock:
            known = max(
                (ids for ids in self._snapshots if len(ids) <= len(context) and context[: len(ids)] == ids),
                key=len,
                default=(),
            )
            base = self._snapshots.get(known)
        if base is not None and known == context:
            return base
        cache = _fork(base.cache) if base else self._model.new_cache()
        logits = self._model.forward([list(context[len(known) :])], cache, last_only=True)[0, -1]
        snapshot = Snapshot(cache, logits.clone())  # not a view that keeps those of the whole prompt alive
        with self._lock:
            if context in self._wanted:
                self._snapshots[context] = snapshot
        return snapshot


def _fork(cache: DynamicCache) -> Any:
    """A cache that grows apart from this one. Keys and values are shared, they are never written in place."""
    fork = copy.copy(cache)
    fork.layers = []
    for layer in cache.layers:
        twin = copy.copy(layer)
        for name, value in vars(layer).items():
            if name not in ("keys", "values"):
                setattr(twin, name, _cloned(value))
        fork.layers.append(twin)
    return fork


def _cloned(value: Any) -> Any:
    """Recurrent and convolution states are written in place, so a fork needs its own."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cloned(item) for item in value]
    return value


def _repeat(cache: Any, rows: int) -> None:
    if rows > 1:
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long))
