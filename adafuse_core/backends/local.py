"""A Hugging Face model in this process.

The contract is in `base.py`; how forward passes are saved is in `adafuse_core.engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from adafuse_core.backends.base import Abilities, Step, Until
from adafuse_core.engine.fork import ForkRows, ForkStore
from adafuse_core.engine.forward import Model
from adafuse_core.engine.numbers import likeliest, logprobs
from adafuse_core.engine.prefill import PrefillStore
from adafuse_core.engine.selftest import fork_problem
from adafuse_core.errors import MemberError, NonFiniteLogitsError
from adafuse_core.text.tokens import Ids

logger = logging.getLogger(__name__)


class LocalBackend:
    """Drafts and scores on a causal language model of transformers.

    Args:
        model: The loaded model.
        name: The member's name, for the log.
    """

    def __init__(self, model: Model, *, name: str) -> None:
        self.model = model
        problem = fork_problem(model)
        self._store: ForkStore | PrefillStore | ClosedStore = PrefillStore(model) if problem else ForkStore(model)
        self._cache = f"none, every step reads the whole context ({problem})" if problem else "forks of KV snapshots"
        if problem:
            logger.warning("member %r runs without a KV cache: %s", name, problem)

    def draft(self, contexts: Sequence[Ids], max_new: int, top: int, until: Until) -> list[list[Step]]:
        """Continue each context greedily; see `Backend.draft`."""
        steps: list[list[Step]] = [[] for _ in contexts]
        for group in _groups(contexts):
            self._draft_group(contexts, group, max_new, top, until, steps)
        return steps

    def score(self, context: Ids, continuations: Sequence[Ids]) -> list[list[float]]:
        """Log-probability of each token of each continuation; see `Backend.score`."""
        inputs = _without_prefixes({ids[:-1] for ids in continuations})  # the last token needs no pass
        rows = dict(zip(inputs, self._logprobs_along(context, inputs), strict=True))
        scores = []
        for ids in continuations:
            read = ids[:-1]
            row = next(rows[known] for known in inputs if known[: len(read)] == read)
            index = torch.tensor(ids, dtype=torch.long, device=row.device)
            scores.append(row[torch.arange(len(ids), device=row.device), index].tolist())
        return scores

    def remember(self, context: Ids) -> None:
        """Keep what is computed for this very context."""
        self._store.remember(context)

    def forget(self, context: Ids) -> None:
        """Take back one `remember`."""
        self._store.forget(context)

    def tokens_held(self) -> int:
        """Tokens whose keys and values are in memory."""
        return self._store.tokens_held()

    def check(self) -> Abilities:
        """Limits and abilities."""
        return Abilities(
            vocab_size=self.model.vocab_size,
            dtype=str(self.model.module.dtype).removeprefix("torch."),
            device=str(self.model.device),
            cache=self._cache,
        )

    def close(self) -> None:
        """Free the model. What is still running fails with an error that says so."""
        self._store = ClosedStore()
        del self.model

    def _draft_group(
        self,
        contexts: Sequence[Ids],
        group: Sequence[int],
        max_new: int,
        top: int,
        until: Until,
        steps: list[list[Step]],
    ) -> None:
        live = list(group)
        rows = self._store.rows([contexts[index] for index in group])
        while True:
            ids, values = likeliest(self._finite(rows.logits), top)
            going = []
            for row, index in enumerate(live):
                steps[index].append(Step(tuple(ids[row]), tuple(values[row])))
                if not until(index, steps[index]) and len(steps[index]) < max_new:
                    going.append(row)
            if not going:
                return
            if len(going) < len(live):
                rows.select(going)
                live = [live[row] for row in going]
            rows.step([steps[index][-1].ids[0] for index in live])

    def _logprobs_along(self, context: Ids, inputs: Sequence[Ids]) -> list[torch.Tensor]:
        return [self._finite(logits) for logits in self._store.logits_along(context, inputs)]

    def _finite(self, logits: torch.Tensor) -> torch.Tensor:
        try:
            with torch.inference_mode():
                return logprobs(logits)
        except FloatingPointError as error:
            raise NonFiniteLogitsError(
                f"the model returned {error}",
                hint="load it in another dtype (bfloat16 or float32), or check its weights",
            ) from error


class ClosedStore:
    """In place of the others once the model is freed."""

    def remember(self, context: Ids) -> None:
        """Nothing to do."""

    def forget(self, context: Ids) -> None:
        """Nothing to do."""

    def tokens_held(self) -> int:
        """None."""
        return 0

    def rows(self, contexts: Sequence[Ids]) -> ForkRows:
        """Refused."""
        raise _freed()

    def logits_along(self, context: Ids, continuations: Sequence[Ids]) -> list[torch.Tensor]:
        """Refused."""
        raise _freed()


def _freed() -> MemberError:
    return MemberError("its model was freed by close() while it was in use", hint="close when all streams are done")


def _groups(contexts: Sequence[Ids]) -> list[list[int]]:
    """Contexts that can be rows of one batch: equal but for their last token. Others go alone."""
    groups: dict[Ids, list[int]] = {}
    for index, context in enumerate(contexts):
        groups.setdefault(context[:-1], []).append(index)
    return list(groups.values())


def _without_prefixes(inputs: set[Ids]) -> list[Ids]:
    """The sequences that no other one begins with, longest first."""
    kept: list[Ids] = []
    for ids in sorted(inputs, key=lambda ids: (-len(ids), ids)):
        if not any(longer[: len(ids)] == ids for longer in kept):
            kept.append(ids)
    return kept
