"""No KV memory: every distribution comes from a fresh forward pass. Slow, and right for any causal model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adafuse_core.engine.forward import Model
from adafuse_core.text.tokens import Ids


class PrefillRows:
    """Contexts of one length, decoded in lockstep by reading them anew at each step."""

    def __init__(self, model: Model, contexts: Sequence[Ids]) -> None:
        self._model = model
        self._contexts = [list(context) for context in contexts]
        self.logits = self._read()  # [rows, vocab], after each row's last token

    def step(self, tokens: Sequence[int]) -> None:
        """Append one token to each row."""
        for context, token in zip(self._contexts, tokens, strict=True):
            context.append(token)
        self.logits = self._read()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        self._contexts = [self._contexts[row] for row in rows]
        self.logits = self.logits[torch.tensor(rows, device=self.logits.device)]

    def _read(self) -> torch.Tensor:
        return self._model.forward(self._contexts, last_only=True)[:, -1]


class PrefillStore:
    """The interface of `ForkStore`, remembering nothing."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def remember(self, context: Ids) -> None:
        """Nothing to do."""

    def forget(self, context: Ids) -> None:
        """Nothing to do."""

    def tokens_held(self) -> int:
        """None."""
        return 0

    def rows(self, contexts: Sequence[Ids]) -> PrefillRows:
        """Rows for contexts of one length."""
        return PrefillRows(self._model, contexts)

    def logits_along(self, context: Ids, continuations: Sequence[Ids]) -> list[torch.Tensor]:
        """Logits before each token of each continuation and after its last: `[len + 1, vocab]` each."""
        longest = max(map(len, continuations))
        padded = [[*context, *ids, *[0] * (longest - len(ids))] for ids in continuations]
        logits = self._model.forward(padded)[:, len(context) - 1 :]  # [rows, longest + 1, vocab]
        return [logits[row, : len(ids) + 1] for row, ids in enumerate(continuations)]
