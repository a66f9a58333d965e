"""Searches for a short valid ending of an unfinished answer.

The grammar engine tells which bytes may follow, but not how far the end is. A greedy search always takes the byte that
most likely closes something; a best-first search then prefers few choices and new states. An ending that is found is
always valid, and probably, but not provably, the shortest one.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Any

# Limits per attempt: choices of the greedy search, states of the best-first search.
QUICK = ((40, 100), (500, 0))
_THOROUGH = ((40, 100), (2000, 1000))
_PATIENCE = 4  # visits to a state before another choice is made
_MAX_BYTES = 10_000  # of the greedy search
_MANY = 10  # if so many bytes lead to one state, the grammar is in free text, and literals are tried
_FEW = 4  # a group of at most so many bytes is tried completely
_CLOSERS = b'}])>",;:@'  # in order of preference, before bytes that close nothing
_OPENERS = b"[{(<-+"  # after other bytes
_ESCAPE = b"\\"  # last

# Whether the answer may end, and the mask of allowed bytes. Matchers with equal values may still behave differently.
_State = tuple[bool, bytes]
_Groups = dict[_State, list[bytes]]  # steps by the state they lead to


def find_ending(
    matcher: Any, literals: Sequence[bytes] = (), efforts: Sequence[tuple[int, int]] = _THOROUGH
) -> bytes | None:
    """Find bytes that complete the answer; None if the search fails.

    Args:
        matcher: State of an llguidance matcher whose tokens are bytes. It is not changed.
        literals: Literal texts of the grammar. In free text, their single bytes do not change the state.
        efforts: Limits of choices and states, per attempt.
    """
    for choices, states in efforts:
        text, cycled = _greedy(matcher.deep_copy(), literals, choices) or (None, True)
        other = _best_first(matcher, literals, states) if cycled else None
        if endings := [ending for ending in (text, other) if ending is not None]:
            return min(endings, key=len)
    return None


def _greedy(matcher: Any, literals: Sequence[bytes], max_choices: int) -> tuple[bytes, bool] | None:
    """Take the best step in every state, or another step after repeated visits; also whether another step was taken."""
    text, cycled = b"", False
    visits: Counter[tuple[bytes, bytes]] = Counter()  # since the last new state
    known: set[tuple[bytes, bytes]] = set()
    for _ in range(max_choices):
        forced = matcher.compute_ff_bytes()
        matcher.consume_tokens(list(forced))
        text += forced
        if matcher.is_accepting():
            return text, cycled
        mask = matcher.compute_bitmask()
        if (mask, forced) not in known:
            known.add((mask, forced))
            visits.clear()
        visits[mask, forced] += 1
        cycles, patient = divmod(visits[mask, forced], _PATIENCE)
        step = _delimiter(matcher) if patient else None
        if step is None and (steps := _steps(matcher, literals)):
            step = steps[0 if patient else cycles % len(steps)]
        if step is None or len(text) > _MAX_BYTES:
            return None
        matcher.consume_tokens(list(step))
        text += step
        if patient:
            text += _repeated(matcher, mask, step)
        else:
            cycled = True
    return None


def _repeated(matcher: Any, mask: bytes, step: bytes) -> bytes:
    """Repeat a step as long as the mask stays the same, such as in a string with `minLength`."""
    text = b""
    while len(step) + len(text) < _MAX_BYTES and not matcher.is_accepting() and matcher.compute_bitmask() == mask:
        if matcher.try_consume_tokens(list(step)) < len(step):
            break
        text += step
    return text


def _best_first(matcher: Any, literals: Sequence[bytes], max_states: int) -> bytes | None:
    """The ending with the fewest choices. States whose successors were seen before are expanded later."""
    order = count()
    queue = [(0, next(order), 0, b"", matcher)]
    seen: Counter[tuple[_State, ...]] = Counter()  # by successors of a state
    for _ in range(max_states):
        if not queue:
            return None
        _, _, choices, text, state = heapq.heappop(queue)
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
            heapq.heappush(queue, (rank, next(order), choices + 1, text + step, further))
        seen[known] += 1
    return None


def _steps(matcher: Any, literals: Sequence[bytes], *, each: bool = False) -> list[bytes]:
    """Possible steps, best first: the forced bytes, or one step per group of bytes that lead to the same state.

    With `each`, a group gives one step per kind of byte, as its bytes may still behave differently later on. Escapes
    are then left out: every character has a plain form.
    """
    if forced := matcher.compute_ff_bytes():
        return [forced]
    allowed = allowed_bytes(matcher)
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
    """Sort key of steps to equal states: letters first, then digits, then bytes that open nothing."""
    return not step.isalpha(), not step.isalnum(), step in _OPENERS, step


def _kinds(group: list[bytes]) -> list[bytes]:
    """One letter of a group, one digit, and all other steps if there are few."""
    letters, digits, others = (
        [step for step in group if kind(step)]
        for kind in (bytes.isalpha, bytes.isdigit, lambda step: not step.isalnum())
    )
    return [*letters[:1], *digits[:1], *(others if len(others) <= _FEW else ())]


def _delimiter(matcher: Any) -> bytes | None:
    """A closing byte that leads to another state than a letter. Faster than `_steps`, which tries all bytes."""
    allowed = allowed_bytes(matcher)
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
    """Add a step to the group of its next state, if the grammar allows the step."""
    further = matcher.deep_copy()
    if further.try_consume_tokens(list(step)) == len(step):
        groups.setdefault((further.is_accepting(), further.compute_bitmask()), []).append(step)


def _rank(state: _State, group: list[bytes], mask: bytes) -> tuple[bool | int, ...]:
    """Sort key: lower means more likely to close something.

    A delimiter is usually alone in its group, while letters and digits share a group.
    """
    alone = len(group) == 1 and len(group[0]) == 1
    return (
        not state[0],
        group == [_ESCAPE],
        state[1] == mask,  # the step changes nothing
        alone and group[0] in _OPENERS,
        _CLOSERS.index(group[0]) if alone and group[0] in _CLOSERS else len(_CLOSERS),
        alone and group[0].isalpha(),  # part of a word, or of a four-digit escape
        len(group),
    )


def allowed_bytes(matcher: Any) -> list[int]:
    """The bytes that may follow."""
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return [byte for byte in range(256) if bits >> byte & 1]
