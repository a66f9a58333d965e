"""What is known of one growing context: a tree of tokens, and the next-token distribution after each of them.

The first tokens of the prompt (the trunk) are a plain list. The last few of them, the answer, and whatever was
drafted, proposed or guessed beyond it are nodes. A wrong guess is a node that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from adafuse_core.engine.distributions import Distribution
from adafuse_core.text.ids import Ids, shared_length

_TAIL = 4  # last tokens of a prompt that are nodes: a token on the seam of prompt and answer may be written anew
_KEPT_ROWS = 3  # newest committed tokens that keep their distribution, for a token on the seam of two words


class Node:
    """One token after its parent; stands for the context that ends with it."""

    __slots__ = ("children", "committed", "depth", "distribution", "held", "parent", "token")

    def __init__(self, token: int, parent: Node | None, depth: int) -> None:
        self.token = token
        self.parent = parent
        self.depth = depth  # tokens of the context, this one included
        self.children: dict[int, Node] = {}
        self.distribution: Distribution | None = None
        self.committed = False
        self.held: Any = None  # a store's own: the place in its memory, None if no pass has read the token

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, upwards."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def below(self) -> Iterator[Node]:
        """This node and all its descendants, parents first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()


class Memo:
    """The tree of one context.

    Args:
        ids: The context to begin with, non-empty.

    Attributes:
        ids: The committed context.
        trunk: Its first tokens, which are no nodes; may be empty.
        root: Stands for the trunk, above all nodes.
        head: The node of the last committed token.
        held: A store's own, for the trunk; None makes it begin anew.
    """

    trunk: Ids
    root: Node
    head: Node
    held: Any

    def __init__(self, ids: Ids) -> None:
        self._plant(ids, len(ids) - _TAIL)

    def known(self, context: Ids) -> Distribution | None:
        """The distribution after a context, if a pass has computed it."""
        shared = self._shared(context)
        if shared < self.root.depth:
            return None
        node = self._committed(shared)
        for token in context[node.depth :]:
            below = node.children.get(token)
            if below is None:
                return None
            node = below
        return node.distribution

    def node(self, context: Ids) -> Node:
        """The node of a context, made if there is none. A context that ends in the trunk makes the memo begin anew."""
        shared = self._shared(context)
        if self.root.depth and shared <= self.root.depth:
            self._plant(self.ids, shared - _TAIL)
        node = self._committed(shared)
        if node is not self.head:
            self._forks.add(node)
        for token in context[node.depth :]:
            if token not in node.children:
                node.children[token] = Node(token, node, node.depth + 1)
            node = node.children[token]
        return node

    def commit(self, ids: Ids) -> list[Node]:
        """Make `ids` the committed context.

        Returns:
            The nodes that are dropped: those neither on its path nor below its end.
        """
        head = self.node(ids)
        path = [head]
        while not path[-1].committed:
            path.append(path[-1].parent or self.root)
        for node in self.head.path():
            if node is path[-1]:
                break
            node.committed = False
        for node in path:
            node.committed = True
        self.ids, self.head = ids, head
        forks = {fork for fork in (*path, *self._forks) if fork.committed and fork is not head}
        dropped = [node for fork in forks for node in _prune(fork)]
        self._forks.clear()
        for age, node in enumerate(head.path()):
            if age >= _KEPT_ROWS:
                if node.distribution is None:
                    break
                node.distribution = None
        return dropped

    def restart(self) -> None:
        """Drop all that is known."""
        self._plant(self.ids, len(self.trunk))

    def _plant(self, ids: Ids, trunk: int) -> None:
        self.ids = ids
        self.trunk = ids[: max(0, trunk)]
        self.root = self.head = Node(-1, None, len(self.trunk))
        self.root.committed = True
        self.held = None
        self._forks: set[Node] = set()  # committed nodes, other than the head, with children off the committed path
        for token in ids[len(self.trunk) :]:
            parent, self.head = self.head, Node(token, self.head, self.head.depth + 1)
            parent.children[token] = self.head
            self.head.committed = True

    def _shared(self, context: Ids) -> int:
        """How many tokens a context has in common with the committed one."""
        length = min(len(context), len(self.ids))
        return length if context[:length] == self.ids[:length] else shared_length(context, self.ids)

    def _committed(self, depth: int) -> Node:
        node = self.head
        while node.depth > depth and node.parent is not None:
            node = node.parent
        return node


def unread(node: Node) -> Iterator[Node]:
    """The node and its ancestors that no pass has read, upwards."""
    for ancestor in node.path():
        if ancestor.parent is None or ancestor.held is not None:
            return
        yield ancestor


def covering(ends: Iterable[Node], path_to: Callable[[Node], list[Node]]) -> list[list[Node]]:
    """A path to each end whose distribution is missing, but for ends that lie on the path to another."""
    paths: list[list[Node]] = []
    for end in sorted({end for end in ends if end.distribution is None}, key=lambda end: -end.depth):
        if not any(end in path for path in paths):
            paths.append(path_to(end))
    return paths


def _prune(fork: Node) -> list[Node]:
    """Cut off the children that are not committed; returns all nodes that go with them."""
    off = [child for child in fork.children.values() if not child.committed]
    for child in off:
        del fork.children[child.token]
    return [node for child in off for node in child.below()]
