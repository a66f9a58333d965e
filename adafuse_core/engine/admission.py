"""Admission control: chooses the requests of the next forward pass when the KV cache has a capacity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from adafuse_core.engine.memo import Memo
from adafuse_core.engine.prefix_cache import Beginning, PrefixCache
from adafuse_core.engine.read_request import ReadRequest
from adafuse_core.engine.store import Store


class Admission:
    """Chooses the requests of one forward pass.

    Older sequences have priority. If a request does not fit, closed sequences are evicted first, the least recently
    used one first; then idle ones; then younger sequences that are also waiting, youngest first. An evicted sequence is
    prefilled again at its next request.

    Args:
        store: KV store, which knows the size of each sequence.
        bound: Capacity in tokens.
        sequences: All open sequences.
        idle: Sequences that were not used for a while.
        cache: The closed sequences.
        beginnings: The beginnings with which sequences will start.

    Attributes:
        moves: Sequences that take over the memory of a closed one, since there is no room for both.
    """

    def __init__(
        self,
        store: Store,
        bound: int,
        sequences: Iterable[Memo],
        idle: Sequence[Memo],
        cache: PrefixCache,
        beginnings: Mapping[Memo, Beginning | None],
    ) -> None:
        self._store = store
        self._bound = bound
        self._cache = cache
        self._beginnings = beginnings
        self._held = {memo: store.tokens_held(memo) for memo in (*sequences, *cache.kept)}
        self._idle = idle
        self._donors: set[Memo] = set()  # of admitted requests
        self.moves: set[Memo] = set()

    def admit(self, requests: Sequence[ReadRequest]) -> list[ReadRequest]:
        """The requests that fit.

        Args:
            requests: At most one request per sequence, oldest sequence first.
        """
        growth = sum(self._needed(request) - self._held[request.memo] for request in requests)
        moved = sum(self._held[each.donor] for each in self._beginnings.values() if each is not None and each.moves)
        if sum(self._held.values()) + growth - moved <= self._bound:
            return list(requests)
        admitted, refused = [], False
        for index, request in enumerate(requests):
            if refused and not self._held[request.memo]:
                continue  # a new sequence does not overtake an older one that does not fit
            younger = [other.memo for other in reversed(requests[index + 1 :])]
            if self._reserve(request, [*self._cache.kept, *self._idle, *younger]):
                admitted.append(request)
            else:
                refused = True
        return admitted

    def _reserve(self, request: ReadRequest, evictable: Iterable[Memo]) -> bool:
        """Reserve memory for a request, with as few evictions as possible; False if evictions don't suffice.

        The closed sequence with the beginning of the request is not evicted, but gives its memory to the request, if
        that fits.
        """
        memo, needed = request.memo, self._needed(request)
        beginning = self._beginnings.get(memo)
        donor = None if beginning is None else beginning.donor
        others = {memo} | self._donors
        victims = [other for other in dict.fromkeys(evictable) if self._held[other] and other not in others]
        kept = sum(held for other, held in self._held.items() if other is not memo and other not in victims)
        if kept and kept + needed > self._bound:  # a request that is alone always runs
            return False
        excess = kept + sum(self._held[victim] for victim in victims) + needed - self._bound
        for victim in victims:
            if excess > 0:
                excess -= self._held[victim]
                with_memory = self._needed(request, move=True)
                if victim is donor and victim in self._cache.kept and kept + with_memory <= max(self._bound, needed):
                    excess += with_memory - needed
                    needed = with_memory
                    self.moves.add(memo)
                else:
                    self._free(victim)
                self._held[victim] = 0
        self._held[memo] = needed
        self._donors |= set() if donor is None else {donor}
        return True

    def _needed(self, request: ReadRequest, *, move: bool = False) -> int:
        """Tokens that the sequence of a request holds after the pass; `move`: with the memory of its donor."""
        beginning = self._beginnings.get(request.memo)
        if beginning is None:
            return self._store.tokens_needed(request)
        taken_over = self._held[beginning.donor] if move or beginning.moves else 0
        return self._store.tokens_needed(request, beginning.length, taken_over)

    def _free(self, victim: Memo) -> None:
        """Evict a sequence."""
        if victim in self._cache.kept:
            self._cache.evict(victim)
        else:
            victim.restart()
