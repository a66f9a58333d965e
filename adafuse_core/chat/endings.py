"""How an answer that has begun can end as its grammar wants, in few bytes.

The grammar engine tells which bytes may follow, not how far an end is. So an ending is searched for: first straight
ahead, always with the byte that most likely closes something, then best first: fewest choices, and what is new before
what was seen. The answer may certainly end after the bytes that were found; that no ending is shorter is likely, not
certain.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

# Choices straight ahead, and states best first: a few, then more.
QUICK = ((40, 100), (500, 0))
_PATIENT = ((40, 100), (2000, 1000))
_PATIENCE = 4  # every so many visits to one state, another choice is made
_LONGEST = 10_000  # bytes straight ahead
_MANY = 10  # bytes that lead to one state: any text may stand here, so that literals are worth a try
_FEW = 4  # bytes of a group that are all tried
_CLOSERS = b'}])>",;:@'  # in this order, before bytes that close nothing
_OPENERS = b"[{(<-+"  # after others
_ESCAPE = b"\\"  # after all others


_Target = tuple[bool, bytes]  # where bytes lead: whether the answer may end there, and which bytes may follow there
_Groups = dict[_Target, list[bytes]]  # bytes by where they lead


def find_ending(
    matcher: Any, literals: Sequence[bytes] = (), efforts: Sequence[tuple[int, int]] = _PATIENT
) -> bytes | None:
    """Bytes after which the answer may end; None if none were found.

    Args:
        matcher: The state of an llguidance matcher on bytes as tokens. It is not changed.
        literals: Texts of the grammar that may have to come. In free text, no single byte of them shows where it leads.
        efforts: How many choices and states are tried, before it is given up.
    """
    for choices, states in efforts:
        text, turned = _straight_ahead(matcher.deep_copy(), literals, choices) or (None, True)
        other = _best_first(matcher, literals, states) if turned else None
        if ways := [way for way in (text, other) if way is not None]:
            return min(ways, key=len)
    return None


def _straight_ahead(matcher: Any, literals: Sequence[bytes], most_choices: int) -> tuple[bytes, bool] | None:
    """Follow the best step everywhere, and another one where that goes in circles; also whether it did."""
    text, turned = b"", False
    visits: Counter[tuple[bytes, bytes]] = Counter()  # since something new was reached
    known: set[tuple[bytes, bytes]] = set()
    for _ in range(most_choices):
        forced = matcher.compute_ff_bytes()
        matcher.consume_tokens(list(forced))
        text += forced
        if matcher.is_accepting():
            return text, turned
        mask = matcher.compute_bitmask()
        if (mask, forced) not in known:
            known.add((mask, forced))
            visits.clear()
        visits[mask, forced] += 1
        circles, patient = divmod(visits[mask, forced], _PATIENCE)
        step = _delimiter(matcher) if patient else None
        if step is None and (steps := _steps(matcher, literals)):
            step = steps[0 if patient else circles % len(steps)]
        if step is None or len(text) > _LONGEST:
            return None
        matcher.consume_tokens(list(step))
        text += step
        if patient:
            text += _repeated(matcher, mask, step)
        else:
            turned = True
    return None


def _repeated(matcher: Any, mask: bytes, step: bytes) -> bytes:
    """Take a step again as long as it changes nothing, such as in a string of a least length."""
    text = b""
    while len(step) + len(text) < _LONGEST and not matcher.is_accepting() and matcher.compute_bitmask() == mask:
        if matcher.try_consume_tokens(list(step)) < len(step):
            break
        text += step
    return text


def _best_first(matcher: Any, literals: Sequence[bytes], most_states: int) -> bytes | None:
    """The first ending in order of choices, where a state from which nothing new can be reached waits longer."""
    order = count()
    waiting = [(0, next(order), 0, b"", matcher)]
    seen: Counter[tuple[_Target, ...]] = Counter()  # by what can be reached from a state
    for _ in range(most_states):
        if not waiting:
            return None
        _, _, choices, text, state = heapq.heappop(waiting)
        reached = []
        for step in _steps(state, literals, each=True):
            further = state.deep_copy()
            further.consume_tokens(list(step))
            if further.is_accepting():
                return text + step
            reached.append((step, further))
        known = tuple((further.is_accepting(), further.compute_bitmask()) for _, further in reached)
        for step, further in reached:
            rank = choices + 1 + _PATIENCE * seen[known]
            heapq.heappush(waiting, (rank, next(order), choices + 1, text + step, further))
        seen[known] += 1
    return None


def _steps(matcher: Any, literals: Sequence[bytes], *, each: bool = False) -> list[bytes]:
    """What may follow, best first: the bytes that must, or one step for each group of those that lead to one state.

    Bytes that allow the same next byte may still lead to different states. With `each`, a group gives one step
    for each kind of byte, and escapes are left out: they write in many ways what has a plain form.
    """
    if forced := matcher.compute_ff_bytes():
        return [forced]
    allowed = _allowed(matcher)
    groups: _Groups = {}
    for byte in [byte for byte in allowed if byte < 128] or allowed:
        _try(matcher, bytes([byte]), groups)
    if max(map(len, groups.values()), default=0) >= _MANY:
        for literal in literals:
            _try(matcher, literal, groups)
    mask = matcher.compute_bitmask()
    ranked = sorted(groups.items(), key=lambda group: _rank(group[0], group[1], mask))
    steps = [min(group, key=_plainness) for _, group in ranked]
    if not each:
        return steps
    further = (step for _, group in ranked for step in (*_kinds(group), *(step for step in group if step in literals)))
    return [step for step in dict.fromkeys((*steps, *further)) if step != _ESCAPE or len(steps) == 1]


def _plainness(step: bytes) -> tuple[bool | bytes, ...]:
    """Sort key of steps that seem to lead to one state: where they don't, letters and dots get further than others."""
    return not step.isalpha(), not step.isalnum(), step in _OPENERS, step


def _kinds(group: list[bytes]) -> list[bytes]:
    """A letter of a group, a digit, and what is neither if that is not much."""
    letters, digits, others = (
        [step for step in group if kind(step)]
        for kind in (bytes.isalpha, bytes.isdigit, lambda step: not step.isalnum())
    )
    return [*letters[:1], *digits[:1], *(others if len(others) <= _FEW else ())]


def _delimiter(matcher: Any) -> bytes | None:
    """A byte that closes something, if it leads elsewhere than a letter does. Found without trying all bytes."""
    allowed = _allowed(matcher)
    groups: _Groups = {}
    if letter := next((bytes([byte]) for byte in allowed if chr(byte).isalnum()), None):
        _try(matcher, letter, groups)
    for closer in _CLOSERS:
        if closer in allowed:
            _try(matcher, bytes([closer]), groups)
            (_, mask), group = next(reversed(groups.items()))
            if group == [bytes([closer])] and mask != matcher.compute_bitmask():
                return group[0]
    return None


def _try(matcher: Any, step: bytes, groups: _Groups) -> None:
    """Put a step into the group of those that lead to the same state, if it may follow."""
    further = matcher.deep_copy()
    if further.try_consume_tokens(list(step)) == len(step):
        groups.setdefault((further.is_accepting(), further.compute_bitmask()), []).append(step)


def _rank(target: _Target, group: list[bytes], mask: bytes) -> tuple[bool | int, ...]:
    """Sort key: lower means more likely to close something.

    A delimiter leads to a state of its own; letters and digits all lead to one.
    """
    alone = len(group) == 1 and len(group[0]) == 1
    return (
        not target[0],
        group == [_ESCAPE],
        target[1] == mask,  # the bytes change nothing
        alone and group[0] in _OPENERS,
        _CLOSERS.index(group[0]) if alone and group[0] in _CLOSERS else len(_CLOSERS),
        alone and group[0].isalpha(),  # of a word, or of an escape with four digits
        len(group),
    )


def _allowed(matcher: Any) -> list[int]:
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return [byte for byte in range(256) if bits >> byte & 1]
