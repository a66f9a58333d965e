"""A request to read contexts of one sequence, and the memo nodes that a pass has to read for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

from adafuse_core.engine.memo import Memo, Node
from adafuse_core.text.ids import Ids


class ReadRequest:
    """Contexts of one sequence, each non-empty, whose next-token distributions the sequence's memo must get."""

    def __init__(self, memo: Memo, contexts: Iterable[Ids]) -> None:
        self.memo = memo
        self.contexts = list(contexts)

    def is_answered(self) -> bool:
        """Whether the memo has the distribution of every context."""
        return all(self.memo.get(context) is not None for context in self.contexts)

    def ends(self) -> list[Node]:
        """The last node of each context."""
        while True:
            root = self.memo.root
            ends = [self.memo.node(context) for context in self.contexts]
            if self.memo.root is root:  # otherwise one context has reset the memo, and earlier nodes are outdated
                return ends


def nodes_to_read(ends: Sequence[Node]) -> list[Node]:
    """The nodes that a pass over a tree reads for these contexts: parents first, without duplicates."""
    found: dict[Node, None] = {}
    for end in ends:
        unread = takewhile(lambda node: node.parent is not None and node.kv is None, end.path())
        found |= dict.fromkeys(reversed(list(unread)))
        if end.distribution is None:
            found[end] = None
    return list(found)


def paths_to_read(ends: Iterable[Node], path_to: Callable[[Node], list[Node]]) -> list[list[Node]]:
    """The paths that a batch reads for these contexts, one per row, longest first.

    Skips ends that have a distribution or lie on the path to another end. `path_to` returns the nodes that a row reads
    to reach an end, including the end.
    """
    paths: list[list[Node]] = []
    for end in sorted(dict.fromkeys(end for end in ends if end.distribution is None), key=lambda end: -end.depth):
        if not any(end in path for path in paths):
            paths.append(path_to(end))
    return paths
