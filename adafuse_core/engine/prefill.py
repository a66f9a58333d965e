"""No KV memory: every distribution comes from a fresh forward pass. Slow, and right for any causal model."""

from __future__ import annotations

from collections.abc import Sequence

from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node, covering
from adafuse_core.engine.numbers import distributions
from adafuse_core.engine.store import Ask
from adafuse_core.text.tokens import Ids

_MOST_TOKENS = 8192  # of one pass, padding included


class PrefillStore:
    """Reads whole contexts, those of many asks as rows of one batch.

    Args:
        model: Any causal model.
    """

    kind = "prefill"

    def __init__(self, model: Model) -> None:
        self._model = model

    def read(self, asks: Sequence[Ask]) -> None:
        """One pass over as many of the missing contexts as it may hold."""
        ends = [(ask.memo.trunk, ask.ends()) for ask in asks]
        wanted = {end for _, nodes in ends for end in nodes}
        rows = [(trunk, path) for trunk, nodes in ends for path in covering(nodes, _path)]
        rows.sort(key=_length, reverse=True)
        longest = _length(rows[0])
        rows = rows[: max(1, _MOST_TOKENS // longest)]
        # Shorter rows are filled up on the right: what comes later can't change what came before.
        padded = [
            [*trunk, *(node.token for node in path), *[0] * (longest - _length((trunk, path)))] for trunk, path in rows
        ]
        places = [
            (row, index, node)
            for row, (trunk, path) in enumerate(rows)
            for index, node in enumerate(path, len(trunk))
            if node.distribution is None and (node in wanted or not node.committed)
        ]
        first = min(index for _, index, _ in places)
        logits = self._model.forward(padded, last=longest - first)  # [rows, longest - first, vocab]
        picked = logits[[row for row, _, _ in places], [index - first for _, index, _ in places]]
        for (_, _, node), distribution in zip(places, distributions(picked), strict=True):
            node.distribution = distribution

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the committed one."""
        memo.commit(context)

    def tokens_held(self, memo: Memo) -> int:
        """None."""
        return 0

    def tokens_needed(self, ask: Ask) -> int:
        """None."""
        return 0


def _path(end: Node) -> list[Node]:
    """The nodes from the trunk down to a node."""
    return [node for node in end.path() if node.parent is not None][::-1]


def _length(row: tuple[Ids, list[Node]]) -> int:
    trunk, path = row
    return len(trunk) + len(path)
