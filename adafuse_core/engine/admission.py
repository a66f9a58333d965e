"""Which of the waiting requests the next pass takes, where the memory for keys and values has a bound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store


class Admission:
    """The memory of all sequences, while the requests of one pass are chosen.

    Older sequences go first. Where a request finds no room, idle sequences are evicted for it, then sequences that
    wait as well and are younger, the youngest first. An evicted sequence is read again when it is wanted.

    Args:
        store: Says how much memory each sequence takes.
        bound: Most tokens to hold.
        sequences: All of them.
        idle: Those that nobody has used for a while.
    """

    def __init__(self, store: Store, bound: int, sequences: Iterable[Memo], idle: Sequence[Memo]) -> None:
        self._store = store
        self._bound = bound
        self._held = {memo: store.tokens_held(memo) for memo in sequences}
        self._idle = idle

    def admit(self, requests: Sequence[ReadRequest]) -> list[ReadRequest]:
        """The requests for which there is room.

        Args:
            requests: Of different sequences, the oldest sequence first.
        """
        growth = sum(self._store.tokens_needed(request) - self._held[request.memo] for request in requests)
        if sum(self._held.values()) + growth <= self._bound:
            return list(requests)
        admitted, refused = [], False
        for index, request in enumerate(requests):
            if refused and not self._held[request.memo]:
                continue  # a new sequence does not overtake an older one that waits for room
            younger = [other.memo for other in reversed(requests[index + 1 :])]
            if self._reserve(request, [*self._idle, *younger]):
                admitted.append(request)
            else:
                refused = True
        return admitted

    def _reserve(self, request: ReadRequest, evictable: Iterable[Memo]) -> bool:
        """Take memory for a request, evicting as few sequences as that needs; False if even all are too few."""
        memo, needed = request.memo, self._store.tokens_needed(request)
        victims = [other for other in dict.fromkeys(evictable) if self._held[other] and other is not memo]
        staying = sum(held for other, held in self._held.items() if other is not memo and other not in victims)
        if staying and staying + needed > self._bound:  # a sequence that is left alone runs in any case
            return False
        excess = staying + sum(self._held[victim] for victim in victims) + needed - self._bound
        for victim in victims:
            if excess > 0:
                excess -= self._held[victim]
                self._held[victim] = 0
                victim.restart()
        self._held[memo] = needed
        return True
