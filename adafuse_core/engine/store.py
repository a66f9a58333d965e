"""The interface of all KV stores: they compute next-token distributions and write them to memos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.text.ids import Ids

SPARE_TOKENS = 64  # room that a sequence needs beyond its context, for candidates and guesses


def trunk_left(memo: Memo) -> int:
    """Tokens of the trunk that are not read, for a store whose memory counts those that are in `trunk_read`."""
    return len(memo.trunk) - (0 if memo.kv is None else int(memo.kv.trunk_read))


class Store(Protocol):
    """The KV caches of all sequences of a model. Used by one thread at a time."""

    kind: str
    one_pass: bool  # whether all contexts of a sequence are read in one pass, so that a guess adds only its tokens

    def read(self, requests: Sequence[ReadRequest]) -> None:
        """Run the model so that at least one request makes progress. Each memo occurs once.

        If the model fails, the memos of the failed pass are reset: later requests read their contexts again.
        """

    def commit(self, memo: Memo, context: Ids) -> None:
        """Make a context the memo's committed one. Evicts branches that neither lie on it nor continue it."""

    def unread(self, memo: Memo) -> int:
        """Tokens of the trunk that must be read before its distributions; 0 if others can't reuse what is read."""

    def settle(self, memo: Memo) -> None:
        """Free everything but the committed tokens of a sequence that is no longer read."""

    def reusable(self, donor: Memo, length: int) -> int:
        """How many of the first `length` committed tokens `adopt` can give to another sequence."""

    def adopt(self, memo: Memo, donor: Memo, length: int, *, move: bool) -> None:
        """Give the keys and values of a donor's first tokens to a sequence of which nothing was read.

        Args:
            memo: The sequence. Its trunk starts with these tokens.
            donor: The sequence that has read them.
            length: Their number, at most what `reusable` returns.
            move: Whether the donor gives its memory away, and is empty afterwards.
        """

    def tokens_held(self, memo: Memo) -> int:
        """Tokens for whose keys and values memory is allocated."""

    def tokens_needed(self, request: ReadRequest, adopted: int = 0, taken_over: int = 0) -> int:
        """Upper bound of `tokens_held` after the next `read` of this request.

        Args:
            request: The request.
            adopted: Tokens that its sequence, of which nothing was read, adopts before that.
            taken_over: Tokens that the donor holds, if it gives its memory away.
        """
