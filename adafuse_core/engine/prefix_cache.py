"""Keys and values that outlive their requests, so that later requests with a common beginning read only what is new.

Closed sequences stay in memory until their room is needed, the least recently used one first. A new sequence starts
with the longest beginning that it shares with any sequence of its namespace, closed or running. Losing a sequence
changes no distribution: its tokens are read again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store
from adafuse_core.text.ids import shared_length

_MIN_TOKENS = 8  # shorter beginnings are not worth a search
_WORTH_WAITING = 16  # tokens that an older request will have read, beyond what can be had at once


@dataclass(frozen=True, eq=False)
class Beginning:
    """The first tokens of a sequence, in the memory of another one.

    Args:
        donor: The other sequence.
        length: Number of tokens.
        moves: Whether the donor is closed and has nothing else, so that the new sequence takes its memory over.
    """

    donor: Memo
    length: int
    moves: bool


class PrefixCache:
    """The closed sequences of a store.

    Args:
        store: The KV store.
        max_tokens: Most tokens that closed sequences hold; None for no bound, 0 to share nothing.
    """

    def __init__(self, store: Store, max_tokens: int | None) -> None:
        self._store = store
        self._max_tokens = max_tokens
        self._kept: dict[Memo, None] = {}  # least recently used first

    @property
    def kept(self) -> Collection[Memo]:
        """The closed sequences, least recently used first."""
        return self._kept.keys()

    def keep(self, memo: Memo) -> None:
        """Keep a sequence that is closed now, in place of those that it continues; free it if another continues it."""
        if self._max_tokens == 0:
            memo.restart()
            return
        self._store.settle(memo)
        length = self._store.reusable(memo, len(memo.ids))
        if length < _MIN_TOKENS:
            memo.restart()
            return
        for other in self._alike(memo, self._kept):
            shared = shared_length(other.ids, memo.ids)
            if self._store.reusable(other, shared) >= length:
                self._touch(other)
                memo.restart()
                return
            if min(shared, length) >= self._store.reusable(other, len(other.ids)):
                self.evict(other)
        self._kept[memo] = None
        self._shrink()

    def beginnings(self, requests: Sequence[ReadRequest], running: Iterable[Memo]) -> dict[Memo, Beginning | None]:
        """Where the sequences of which nothing was read can start.

        Args:
            requests: The waiting requests, oldest sequence first.
            running: All open sequences.

        Returns:
            For each such sequence its longest beginning. None tells it to wait, since an older request will soon have
            read a longer one. Sequences without a beginning are left out.
        """
        found: dict[Memo, Beginning | None] = {}
        if self._max_tokens == 0:
            return found
        readers: list[Memo] = []  # older sequences of this pass
        taken: set[Memo] = set()  # donors that give their memory away
        running = [memo for memo in running if memo.kv is not None]
        for memo in (request.memo for request in requests):
            if memo.kv is None:
                beginning = self._longest(memo, running)
                length = 0 if beginning is None else beginning.length
                soon = max((self._soon(memo, other) for other in readers), default=0)
                if soon > length + _WORTH_WAITING or (beginning and beginning.donor in taken):
                    found[memo] = None
                    continue
                if beginning is not None:
                    found[memo] = beginning
                    self._touch(beginning.donor)
                    taken |= {beginning.donor} if beginning.moves else set()
            readers.append(memo)
        return found

    def adopt(self, memo: Memo, beginning: Beginning, *, move: bool) -> None:
        """Give a sequence its beginning. If `move`, the donor is closed and loses its memory."""
        if beginning.donor.kv is None:  # it was evicted meanwhile
            return
        self._store.adopt(memo, beginning.donor, beginning.length, move=move)
        memo.tokens_reused = beginning.length
        if move:
            self._kept.pop(beginning.donor, None)

    def abandon(self) -> list[Memo]:
        """Forget the closed sequences without freeing their memory; returns them."""
        abandoned = list(self._kept)
        self._kept.clear()
        return abandoned

    def evict(self, memo: Memo) -> None:
        """Free the memory of a closed sequence."""
        self._kept.pop(memo, None)
        memo.restart()

    def distrust(self, memo: Memo) -> None:
        """Evict the sequences that begin like one whose pass has failed: the error may lie in what they share."""
        for other in self._alike(memo, self._kept):
            self.evict(other)

    def clear(self, namespace: str | None = None) -> bool:
        """Evict all closed sequences, or those of one namespace; returns whether there were any."""
        found = [memo for memo in self._kept if namespace is None or memo.namespace == namespace]
        for memo in found:
            self.evict(memo)
        return bool(found)

    def _longest(self, memo: Memo, running: Iterable[Memo]) -> Beginning | None:
        best: Beginning | None = None
        for donor in self._alike(memo, (*self._kept, *running)):
            closed = donor in self._kept
            # A running sequence may still replace its last tokens.
            own = len(donor.ids) if closed else len(donor.trunk)
            most = min(shared_length(donor.ids, memo.ids), own, len(memo.trunk))
            length = self._store.reusable(donor, most)
            if length >= _MIN_TOKENS and (best is None or length > best.length):
                moves = closed and length == self._store.reusable(donor, own)
                best = Beginning(donor, length, moves)
        return best

    @staticmethod
    def _alike(memo: Memo, others: Iterable[Memo]) -> list[Memo]:
        """The other sequences of the namespace whose beginning is worth sharing."""
        start = memo.ids[:_MIN_TOKENS]
        return [
            other
            for other in others
            if other is not memo and other.namespace == memo.namespace and other.ids[:_MIN_TOKENS] == start
        ]

    def _soon(self, memo: Memo, reader: Memo) -> int:
        """Tokens of a sequence that another one will have read when its prompt is read; 0 if it is."""
        if reader.namespace != memo.namespace or not self._store.unread(reader):
            return 0
        return min(shared_length(memo.ids, reader.ids), len(memo.trunk), len(reader.trunk))

    def _touch(self, memo: Memo) -> None:
        if memo in self._kept:
            del self._kept[memo]
            self._kept[memo] = None

    def _shrink(self) -> None:
        if self._max_tokens is not None:
            held = sum(map(self._store.tokens_held, self._kept))
            while held > self._max_tokens:
                oldest = next(iter(self._kept))
                held -= self._store.tokens_held(oldest)
                self.evict(oldest)
