"""What is known of one growing context: a tree of tokens, with the next-token distribution after each of them.

Most of the prompt (the trunk) is a plain list of tokens. Its last few tokens, the answer, and all candidates and
guesses beyond the answer are nodes. A wrong guess is a node that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from adafuse_core.engine.distributions import Distribution
from adafuse_core.text.ids import Ids, shared_length

_TAIL = 4  # last tokens of a prompt that are nodes: an answer may replace a token on the seam
_KEPT_ROWS = 3  # newest committed tokens that keep their distribution: the next word may replace a token on the seam


class Node:
    """One token after its parent; stands for the context that ends with it."""

    __slots__ = ("children", "committed", "depth", "distribution", "kv", "parent", "token")

    def __init__(self, token: int, parent: Node | None, depth: int) -> None:
        self.token = token
        self.parent = parent
        self.depth = depth  # tokens of the context, this one included
        self.children: dict[int, Node] = {}
        self.distribution: Distribution | None = None
        self.committed = False
        self.kv: Any = None  # written by the store: where it keeps the token's keys and values; None if unread

    def path(self, below: Node | None = None) -> Iterator[Node]:
        """This node and its ancestors, upwards; only those below an ancestor if one is given."""
        node: Node | None = self
        while node is not None and node is not below:
            yield node
            node = node.parent

    def descend(self) -> Iterator[Node]:
        """This node and all its descendants, parents first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.children.values()

    def cut_branches(self) -> list[Node]:
        """Remove the children that are not committed; returns them and all their descendants."""
        branches = [child for child in self.children.values() if not child.committed]
        for branch in branches:
            del self.children[branch.token]
        return [node for branch in branches for node in branch.descend()]


class Memo:
    """The tree of one context.

    Args:
        ids: The context to begin with, non-empty.

    Attributes:
        ids: The committed context.
        trunk: Its first tokens, which have no nodes; may be empty.
        root: Stands for the trunk, above all nodes.
        head: The node of the last committed token.
        kv: Written by the store: its memory of the sequence. A reset of the memo sets it to None.
    """

    trunk: Ids
    root: Node
    head: Node
    kv: Any

    def __init__(self, ids: Ids) -> None:
        self._plant(ids, len(ids) - _TAIL)

    def known(self, context: Ids) -> Distribution | None:
        """The distribution after a context, if a pass has computed it."""
        shared = self._shared(context)
        if shared < self.root.depth:
            return None
        node = self._committed(shared)
        for token in context[node.depth :]:
            child = node.children.get(token)
            if child is None:
                return None
            node = child
        return node.distribution

    def node(self, context: Ids) -> Node:
        """The node of a context, made if it is missing. A context that ends inside the trunk resets the memo."""
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
            The nodes that are removed: those neither on its path nor below its end.
        """
        head = self.node(ids)
        fork = next(node for node in head.path() if node.committed)  # where the old and the new context part
        for node in self.head.path(below=fork):
            node.committed = False
        new = list(head.path(below=fork))
        for node in new:
            node.committed = True
        self.ids, self.head = ids, head
        self._forks.update((fork, *new))
        removed = [node for fork in self._forks - {head} if fork.committed for node in fork.cut_branches()]
        self._forks.clear()
        self._forget_old_distributions()
        return removed

    def restart(self) -> None:
        """Forget everything but the committed context."""
        self._plant(self.ids, len(self.trunk))

    def _plant(self, ids: Ids, trunk: int) -> None:
        self.ids = ids
        self.trunk = ids[: max(0, trunk)]
        self.root = self.head = Node(-1, None, len(self.trunk))
        self.root.committed = True
        self.kv = None
        self._forks: set[Node] = set()  # committed nodes above the head that may have uncommitted children
        for token in ids[len(self.trunk) :]:
            parent, self.head = self.head, Node(token, self.head, self.head.depth + 1)
            parent.children[token] = self.head
            self.head.committed = True

    def _forget_old_distributions(self) -> None:
        for node in islice(self.head.path(), _KEPT_ROWS, None):
            if node.distribution is None:
                break  # those above it were forgotten by earlier commits
            node.distribution = None

    def _shared(self, context: Ids) -> int:
        """How many tokens a context has in common with the committed one."""
        length = min(len(context), len(self.ids))
        return length if context[:length] == self.ids[:length] else shared_length(context, self.ids)

    def _committed(self, depth: int) -> Node:
        """The committed node at a depth; the root if that lies in the trunk."""
        node = self.head
        while node.depth > depth and node.parent is not None:
            node = node.parent
        return node
