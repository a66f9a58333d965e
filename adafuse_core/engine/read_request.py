"""What one sequence wants to know."""

from __future__ import annotations

from collections.abc import Iterable

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
