"""The interface of all KV stores: they compute next-token distributions and write them to memos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.text.ids import Ids

SPARE_TOKENS = 64  # room that a sequence needs beyond its context, for candidates and guesses


class Store(Protocol):
    """The KV caches of all sequences of a model. Used by one thread at a time."""

    kind: str

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """Run the model so that at least one request makes progress. Each memo occurs once.

        If the model fails, the memos of the failed pass are reset: later requests read their contexts again.
        """

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the memo's committed one. Evicts branches that neither lie on it nor continue it."""

    def tokens_held(self, memo: Memo) -> int:
        """Tokens for whose keys and values memory is allocated."""

    def tokens_needed(self, request: ReadRequest) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request."""
