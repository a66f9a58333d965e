"""Which nodes of a memo a pass has to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from adafuse_core.engine.memo import Node


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
