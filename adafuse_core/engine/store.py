"""The one interface of the KV memories: they read what is asked about token contexts into memos."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from adafuse_core.engine.memo import Memo, Node
from adafuse_core.text.ids import Ids

SPARE_TOKENS = 64  # beside its context, a sequence needs room for what is tried beyond it


class Ask:
    """Contexts of one sequence whose next-token distributions are wanted.

    Args:
        memo: The sequence's.
        contexts: Token ids, each non-empty.

    Attributes:
        settled: Whether all are known, or there is an error.
        error: Why they never will be.
        thread: Who asks.
        wake: Set when it is settled, or when its thread is to run the next pass.
    """

    def __init__(self, memo: Memo, contexts: Iterable[Ids]) -> None:
        self.memo = memo
        self.contexts = list(contexts)
        self.settled = False
        self.thread = threading.get_ident()
        self.wake = threading.Event()
        self.error: Exception | None = None

    def known(self) -> bool:
        """Whether the memo has all that is wanted."""
        return all(self.memo.known(context) is not None for context in self.contexts)

    def ends(self) -> list[Node]:
        """The nodes of the contexts."""
        while True:
            root = self.memo.root
            ends = [self.memo.node(context) for context in self.contexts]
            if self.memo.root is root:  # else a context ends in the trunk, and the memo began anew
                return ends


class Store(Protocol):
    """A KV memory. Used by one thread at a time."""

    kind: str

    def read(self, asks: Sequence[Ask]) -> None:
        """Run the model so that at least one ask is brought further. Each memo occurs once.

        When it fails, memos that it worked on begin anew.
        """

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the memo's committed one; what led elsewhere is dropped."""

    def tokens_held(self, memo: Memo) -> int:
        """Tokens for whose keys and values memory is taken."""

    def tokens_needed(self, ask: Ask) -> int:
        """How many that may be after the next read of an ask."""
