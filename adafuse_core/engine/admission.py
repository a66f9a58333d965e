"""Admission control: chooses the requests of the next forward pass when the KV cache has a capacity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store


class Admission:
    """Chooses the requests of one forward pass.

    Older sequences have priority. If a request does not fit, idle sequences are evicted first, then younger sequences
    that are also waiting, youngest first. An evicted sequence is prefilled again at its next request.

    Args:
        store: KV store, which knows the size of each sequence.
        bound: Capacity in tokens.
        sequences: All open sequences.
        idle: Sequences that were not used for a while.
    """

    def __init__(self, store: Store, bound: int, sequences: Iterable[Memo], idle: Sequence[Memo]) -> None:
        self._store = store
        self._bound = bound
        self._held = {memo: store.tokens_held(memo) for memo in sequences}
        self._idle = idle

    def admit(self, requests: Sequence[ReadRequest]) -> list[ReadRequest]:
        """The requests that fit.

        Args:
            requests: At most one request per sequence, oldest sequence first.
        """
        growth = sum(self._store.tokens_needed(request) - self._held[request.memo] for request in requests)
        if sum(self._held.values()) + growth <= self._bound:
            return list(requests)
        admitted, refused = [], False
        for index, request in enumerate(requests):
            if refused and not self._held[request.memo]:
                continue  # a new sequence does not overtake an older one that does not fit
            younger = [other.memo for other in reversed(requests[index + 1 :])]
            if self._reserve(request, [*self._idle, *younger]):
                admitted.append(request)
            else:
                refused = True
        return admitted

    def _reserve(self, request: ReadRequest, evictable: Iterable[Memo]) -> bool:
        """Reserve memory for a request, with as few evictions as possible; False if evictions don't suffice."""
        memo, needed = request.memo, self._store.tokens_needed(request)
        victims = [other for other in dict.fromkeys(evictable) if self._held[other] and other is not memo]
        kept = sum(held for other, held in self._held.items() if other is not memo and other not in victims)
        if kept and kept + needed > self._bound:  # a request that is alone always runs
            return False
        excess = kept + sum(self._held[victim] for victim in victims) + needed - self._bound
        for victim in victims:
            if excess > 0:
                excess -= self._held[victim]
                self._held[victim] = 0
                victim.restart()
        self._held[memo] = needed
        return True
