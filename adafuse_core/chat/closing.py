"""The shortest way out: how an answer that has begun can end as its grammar wants, in few bytes.

The engine tells which bytes may follow, not how far an end is. So a way is searched for: first straight ahead, always
with the byte that most likely closes something, then in all directions by number of choices. What is found is an
end for certain; that it is the shortest is likely, not certain.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

_MOST_CHOICES = 2000  # straight ahead
_MOST_STATES = 1000  # in all directions
_FEW_STATES = 100  # in all directions, where there is a way already
_PATIENCE = 4  # visits to a place of the same choices after which another one is made
_LONGEST = 10_000  # bytes straight ahead
_MANY = 20  # bytes that lead to the same choice: any text may stand here, so that literals are worth a try
_CLOSERS = b'}])>",;:'  # in this order, before bytes that close nothing
_OPENERS = b"[{(<-+"  # after others
_ESCAPE = b"\\"  # after all others


def shortest_end(matcher: Any, literals: Sequence[bytes] = ()) -> bytes | None:
    """Bytes after which the answer may end; None if none were found.

    Args:
        matcher: The state of an llguidance matcher on bytes as tokens. It is not changed.
        literals: Texts of the grammar that may have to come. In free text, no single byte of them shows where it leads.
    """
    ahead = _straight_ahead(matcher.deep_copy(), literals)
    if ahead is None:
        return _in_all_directions(matcher, literals, _MOST_STATES)
    text, turned = ahead
    around = _in_all_directions(matcher, literals, _FEW_STATES) if turned else None
    return text if around is None or len(text) <= len(around) else around


def _straight_ahead(matcher: Any, literals: Sequence[bytes]) -> tuple[bytes, bool] | None:
    """Follow the first choice everywhere, and another one where that leads round and round; and whether it did."""
    text, turned = b"", False
    visits: Counter[tuple[bytes, bytes]] = Counter()
    for _ in range(_MOST_CHOICES):
        forced = matcher.compute_ff_bytes()
        matcher.consume_tokens(list(forced))
        text += forced
        if matcher.is_accepting():
            return text, turned
        place = matcher.compute_bitmask()
        visits[place, forced] += 1
        turn, rest = divmod(visits[place, forced], _PATIENCE)
        step = _delimiter(matcher) if rest else None
        if step is None and (steps := _steps(matcher, literals)):
            step = steps[0 if rest else turn % len(steps)]
        if step is None or len(text) > _LONGEST:
            return None
        turned = turned or not rest
        text += _run(matcher, place if rest else b"", step)
    return None


def _run(matcher: Any, place: bytes, step: bytes) -> bytes:
    """Take a step, and again as long as it changes nothing, such as in a string of a least length."""
    matcher.consume_tokens(list(step))
    text = step
    while len(text) < _LONGEST and not matcher.is_accepting() and matcher.compute_bitmask() == place:
        if matcher.try_consume_tokens(list(step)) < len(step):
            break
        text += step
    return text


def _in_all_directions(matcher: Any, literals: Sequence[bytes], most_states: int) -> bytes | None:
    """Fewest choices first."""
    order = count()
    waiting = [(0, next(order), b"", matcher)]
    for _ in range(most_states):
        if not waiting:
            return None
        choices, _, text, state = heapq.heappop(waiting)
        for step in _steps(state, literals):
            further = state.deep_copy()
            further.consume_tokens(list(step))
            if further.is_accepting():
                return text + step
            heapq.heappush(waiting, (choices + 1, next(order), text + step, further))
    return None


def _steps(matcher: Any, literals: Sequence[bytes]) -> list[bytes]:
    """What may follow, best first: the bytes that must, or one step for each group of those that lead to the same."""
    if forced := matcher.compute_ff_bytes():
        return [forced]
    here, allowed = matcher.compute_bitmask(), _allowed(matcher)
    groups: dict[tuple[bool, bytes], list[bytes]] = {}
    for byte in [byte for byte in allowed if byte < 128] or allowed:
        _lead(matcher, bytes([byte]), groups)
    if max(map(len, groups.values()), default=0) >= _MANY:
        for literal in literals:
            _lead(matcher, literal, groups)
    ranked = sorted(groups.items(), key=lambda group: _rank(group[0], group[1], here))
    return [next((step for step in group if step.isalnum()), group[0]) for _, group in ranked]


def _delimiter(matcher: Any) -> bytes | None:
    """What may follow and closes something, if it leads elsewhere than a letter does. Found without trying all."""
    allowed = _allowed(matcher)
    letter = next((bytes([byte]) for byte in allowed if chr(byte).isalnum()), None)
    groups: dict[tuple[bool, bytes], list[bytes]] = {}
    if letter is not None:
        _lead(matcher, letter, groups)
    for closer in _CLOSERS:
        if closer in allowed:
            _lead(matcher, bytes([closer]), groups)
            to, group = next(reversed(groups.items()))
            if group == [bytes([closer])] and to[1] != matcher.compute_bitmask():
                return group[0]
    return None


def _lead(matcher: Any, step: bytes, groups: dict[tuple[bool, bytes], list[bytes]]) -> None:
    """Put a step to those that lead where it leads: whether to an end, and to which choice."""
    further = matcher.deep_copy()
    if further.try_consume_tokens(list(step)) == len(step):
        groups.setdefault((further.is_accepting(), further.compute_bitmask()), []).append(step)


def _rank(to: tuple[bool, bytes], group: list[bytes], here: bytes) -> tuple[bool | int, ...]:
    """Lower for what closes something. A delimiter leads elsewhere than other bytes do; a letter as all letters do."""
    ends, place = to
    alone = len(group) == 1 and len(group[0]) == 1
    closes = _CLOSERS.find(group[0]) if alone and group[0] in _CLOSERS else len(_CLOSERS)
    begins = alone and group[0].isalpha()  # a word, or an escape with four digits
    opens = alone and group[0] in _OPENERS
    return not ends, group == [_ESCAPE], place == here, opens, closes, begins, len(group)


def _allowed(matcher: Any) -> list[int]:
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return [byte for byte in range(256) if bits >> byte & 1]
