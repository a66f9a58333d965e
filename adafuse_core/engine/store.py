"""The interface that all KV memories have in common: they fill memos with next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.text.ids import Ids

SPARE_TOKENS = 64  # beside its context, a sequence needs room for candidates and guesses


class Store(Protocol):
    """A KV memory. Used by one thread at a time."""

    kind: str

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """Run the model so that at least one request gets nearer to its answer. Each memo occurs once.

        If the model fails, the memos that it worked on are reset: their contexts are read again when they are wanted.
        """

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the memo's committed one, and evict the branches that do not lie on it or grow from it."""

    def tokens_held(self, memo: Memo) -> int:
        """Tokens for whose keys and values memory is taken."""

    def tokens_needed(self, request: ReadRequest) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request."""
