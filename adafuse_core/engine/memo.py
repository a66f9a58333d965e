"""The next-token distributions of one sequence, in a tree of tokens.

The first tokens of the prompt (the trunk) are a plain tuple. The last few prompt tokens, the answer, and all candidates
and guesses that continue the answer are nodes. A wrong guess is a node that no request reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from adafuse_core.engine.distributions import Distribution
from adafuse_core.text.ids import Ids, shared_length

_TAIL_TOKENS = 4  # last prompt tokens that are nodes: the answer may retokenize the end of the prompt
_KEPT_DISTRIBUTIONS = 3  # of the last committed tokens: the next word may retokenize the end


class Node:
    """A token and its parent node; stands for the context that ends with this token."""

    __slots__ = ("children", "committed", "depth", "distribution", "kv", "parent", "token")

    def __init__(self, token: int, parent: Node | None, depth: int) -> None:
        self.token = token
        self.parent = parent
        self.depth = depth  # tokens of the context, this one included
        self.children: dict[int, Node] = {}
        self.distribution: Distribution | None = None
        self.committed = False
        self.kv: Any = None  # set by the store: where the token's keys and values are; None if no pass has read it

    def path(self, below: Node | None = None) -> Iterator[Node]:
        """This node and its ancestors, upwards; only the nodes below an ancestor if one is given."""
        node: Node | None = self
        while node is not None and node is not below:
            yield node
            node = node.parent

    def from_root(self) -> list[Node]:
        """The nodes from below the root down to this one, in order."""
        return [node for node in self.path() if node.parent is not None][::-1]

    def subtree(self) -> Iterator[Node]:
        """This node and all its descendants, parents first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def prune(self) -> list[Node]:
        """Remove the uncommitted children; returns them and all their descendants."""
        branches = [child for child in self.children.values() if not child.committed]
        for branch in branches:
            del self.children[branch.token]
        return _taken_apart(node for branch in branches for node in branch.subtree())


class Memo:
    """The tree of one sequence.

    Args:
        ids: The first context, non-empty.
        namespace: Sequences of other namespaces do not share keys and values with this one.

    Attributes:
        tokens_read: Tokens that passes have read for this sequence.
        tokens_reused: Tokens of the first context whose keys and values came from other sequences.
        ids: The committed context.
        trunk: Its first tokens, which have no nodes; may be empty.
        root: The parent of the first nodes; stands for the trunk.
        head: The node of the last committed token.
        kv: Set by the store: its memory of the sequence. None after a reset of the memo.
    """

    head: Node

    def __init__(self, ids: Ids, namespace: str = "") -> None:
        self.namespace = namespace
        self.tokens_read = self.tokens_reused = 0
        self.root = self.head = Node(-1, None, 0)
        self._reset(ids, len(ids) - _TAIL_TOKENS)

    def get(self, context: Ids) -> Distribution | None:
        """The next-token distribution after a context; None if no pass has computed it."""
        shared = self._shared_length(context)
        if shared < self.root.depth:
            return None
        node = self._committed_node(shared)
        for token in context[node.depth :]:
            if token not in node.children:
                return None
            node = node.children[token]
        return node.distribution

    def node(self, context: Ids) -> Node:
        """The node of a context, created if missing. A context that ends in the trunk resets the memo first."""
        shared = self._shared_length(context)
        if self.root.depth and shared <= self.root.depth:
            self._reset(self.ids, shared - _TAIL_TOKENS)
        node = self._committed_node(shared)
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
            The removed nodes: all that neither lie on the path of `ids` nor continue it.
        """
        head = self.node(ids)
        fork = next(node for node in head.path() if node.committed)  # where the new context leaves the old one
        for node in self.head.path(below=fork):
            node.committed = False
        new = list(head.path(below=fork))
        for node in new:
            node.committed = True
        self.ids, self.head = ids, head
        self._forks.update((fork, *new))
        removed = [node for fork in self._forks - {head} if fork.committed for node in fork.prune()]
        self._forks.clear()
        for node in islice(head.path(), _KEPT_DISTRIBUTIONS, None):
            if node.distribution is None:
                break  # earlier commits dropped the distributions above
            node.distribution = None
        return removed

    def settle(self) -> list[Node]:
        """Forget all branches and distributions; returns the removed nodes."""
        removed = [*self.commit(self.ids), *self.head.prune()]
        for node in self.head.path():
            node.distribution = None
        return removed

    def restart(self) -> None:
        """Forget everything but the committed context."""
        self._reset(self.ids, len(self.trunk))

    def _reset(self, ids: Ids, trunk: int) -> None:
        _taken_apart(self.root.subtree())
        self.ids = ids
        self.trunk = ids[: max(0, trunk)]
        self.root = self.head = Node(-1, None, len(self.trunk))
        self.root.committed = True
        self.kv: Any = None
        self._forks: set[Node] = set()  # committed nodes above the head that may have uncommitted children
        for token in ids[len(self.trunk) :]:
            parent, self.head = self.head, Node(token, self.head, self.head.depth + 1)
            parent.children[token] = self.head
            self.head.committed = True

    def _shared_length(self, context: Ids) -> int:
        """Length of the longest common prefix of a context and the committed one."""
        length = min(len(context), len(self.ids))
        return length if context[:length] == self.ids[:length] else shared_length(context, self.ids)

    def _committed_node(self, depth: int) -> Node:
        """The committed node at a depth; the root if the depth lies in the trunk."""
        node = self.head
        while node.depth > depth and node.parent is not None:
            node = node.parent
        return node


def _taken_apart(nodes: Iterable[Node]) -> list[Node]:
    """Removed nodes without what they hold, and without cycles: Python's collector of cycles may come much later."""
    removed = list(nodes)
    for node in removed:
        node.distribution, node.children = None, {}
    return removed
