"""What one sequence wants to know, and which nodes of its memo a pass has to read for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from adafuse_core.engine.memo import Memo, Node
from adafuse_core.text.ids import Ids


class ReadRequest:
    """Contexts of one sequence whose next-token distributions are wanted.

    Args:
        memo: The sequence's memo, which takes the distributions.
        contexts: Token ids, each non-empty.
    """

    def __init__(self, memo: Memo, contexts: Iterable[Ids]) -> None:
        self.memo = memo
        self.contexts = list(contexts)

    def is_answered(self) -> bool:
        """Whether the memo has all distributions that are wanted."""
        return all(self.memo.known(context) is not None for context in self.contexts)

    def ends(self) -> list[Node]:
        """The last node of each context."""
        while True:
            root = self.memo.root
            ends = [self.memo.node(context) for context in self.contexts]
            if self.memo.root is root:  # else a context ends in the trunk, and the nodes before it are of the old tree
                return ends


def unread(node: Node) -> Iterator[Node]:
    """The node and its ancestors that no pass has read, upwards."""
    for ancestor in node.path():
        if ancestor.parent is None or ancestor.kv is not None:
            return
        yield ancestor


def nodes_to_read(ends: Sequence[Node]) -> list[Node]:
    """The nodes that a pass over a tree reads for these contexts: parents first, none twice."""
    found: dict[Node, None] = {}
    for end in ends:
        found |= dict.fromkeys(reversed(list(unread(end))))
        if end.distribution is None:
            found[end] = None
    return list(found)


def paths_to_read(ends: Iterable[Node], path_to: Callable[[Node], list[Node]]) -> list[list[Node]]:
    """The paths that rows of a batch read for these contexts, longest first.

    An end that lies on the path to another end needs no row of its own.

    Args:
        ends: The last node of each context; those with a distribution are left out.
        path_to: The nodes that a row reads to reach an end, that end included.
    """
    paths: list[list[Node]] = []
    for end in sorted({end for end in ends if end.distribution is None}, key=lambda end: -end.depth):
        if not any(end in path for path in paths):
            paths.append(path_to(end))
    return paths
