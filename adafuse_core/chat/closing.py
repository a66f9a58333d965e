"""The shortest way out: how an answer that has begun can end as its grammar wants, in few bytes.

The engine tells which bytes may follow, not how far an end is. So a way is searched for: first straight ahead, always
with the byte that most likely closes something, then in all directions by number of choices. What is found is an
end for certain; that it is the shortest is likely, not certain.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Any

_MOST_CHOICES = 2000  # straight ahead
_MOST_STATES = 3000  # in all directions
_CLOSERS = b'}])>",;:'  # in this order, before bytes that close nothing
_OPENERS = b"\\[{(<-+"  # after all others


def shortest_end(matcher: Any) -> bytes | None:
    """Bytes after which the answer may end; None if none were found.

    Args:
        matcher: The state of an llguidance matcher on bytes as tokens. It is not changed.
    """
    straight = _straight(matcher.deep_copy())
    return _in_all_directions(matcher) if straight is None else straight


def _straight(matcher: Any) -> bytes | None:
    """Follow the first choice everywhere."""
    text = b""
    for _ in range(_MOST_CHOICES):
        if matcher.is_accepting():
            return text
        step = next(_steps(matcher), None)
        if step is None:
            return None
        matcher.consume_tokens(list(step))
        text += step
    return None


def _in_all_directions(matcher: Any) -> bytes | None:
    """Fewest choices first."""
    order = count()
    waiting = [(0, next(order), b"", matcher)]
    for _ in range(_MOST_STATES):
        if not waiting:
            return None
        choices, _, text, state = heapq.heappop(waiting)
        if state.is_accepting():
            return text
        for step in _steps(state):
            further = state.deep_copy()
            further.consume_tokens(list(step))
            heapq.heappush(waiting, (choices + 1, next(order), text + step, further))
    return None


def _steps(matcher: Any) -> Iterator[bytes]:
    """What may follow: the bytes that must, or one byte for each group of bytes that lead to the same choice."""
    if forced := matcher.compute_ff_bytes():
        yield forced
        return
    allowed = _allowed(matcher)
    groups: dict[tuple[bytes, bool], list[int]] = {}
    for byte in [byte for byte in allowed if byte < 128] or allowed:
        further = matcher.deep_copy()
        further.consume_token(byte)
        groups.setdefault((further.compute_bitmask(), further.is_accepting()), []).append(byte)
    for group in sorted(groups.values(), key=_rank):
        yield bytes([next((byte for byte in group if chr(byte).isalnum()), group[0])])


def _rank(group: list[int]) -> tuple[int, int, int]:
    """Lower for what closes something. A delimiter leads elsewhere than other bytes do; a letter as all letters do."""
    alone = len(group) == 1
    closes = _CLOSERS.find(group[0]) if alone and group[0] in _CLOSERS else len(_CLOSERS)
    return int(alone and group[0] in _OPENERS), closes, len(group)


def _allowed(matcher: Any) -> list[int]:
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return [byte for byte in range(256) if bits >> byte & 1]
