"""No KV memory: every distribution comes from a fresh forward pass. Slow, and right for any causal model."""

from __future__ import annotations

from collections.abc import Sequence

from adafuse_core.engine.forward import Model
from adafuse_core.engine.memo import Memo, Node
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
        ends = [(ask.memo, ask.ends()) for ask in asks]
        wanted = {end for _, nodes in ends for end in nodes}
        rows = [path for memo, nodes in ends for path in _paths(memo, nodes)]
        rows.sort(key=len, reverse=True)
        rows = rows[: max(1, _MOST_TOKENS // len(rows[0]))]
        longest = len(rows[0])
        # Shorter rows are filled up on the right: what comes later can't change what came before.
        padded = [[*(node.token for node in row), *[0] * (longest - len(row))] for row in rows]
        places = [
            (row, index, node)
            for row, path in enumerate(rows)
            for index, node in enumerate(path)
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


def _paths(memo: Memo, ends: Sequence[Node]) -> list[list[Node]]:
    """All nodes from the first token to each missing end; none is part of another."""
    paths: list[list[Node]] = []
    for end in sorted({end for end in ends if end.distribution is None}, key=lambda end: -end.depth):
        if not any(end in path for path in paths):
            above = [Node(token, None, depth + 1) for depth, token in enumerate(memo.trunk)]
            nodes = [node for node in end.path() if node.parent is not None]
            paths.append([*above, *reversed(nodes)])
    for path in paths:
        for node in path[: len(memo.trunk)]:
            node.committed = True
    return paths
