"""Cuts a long text into pieces that are scored one by one, each after the text before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from adafuse_core.text.words import WhitespaceWords

_SLACK = 8  # tokens: the first tokens of a prompt, and tokens that straddle the border of two words


def windows(text: str, count: Callable[[str], int], limit: int | None) -> list[tuple[str, str]]:
    """Cut a text into `(context, piece)` pairs that fit into the context windows of all members.

    The pieces, joined, are the text. A text that fits is one piece without context. Otherwise each piece has up to half
    of the window, and the context is as much of the text before it as fits into the other half.

    Args:
        text: The whole text.
        count: Largest number of tokens of a text, over the members.
        limit: Smallest context window of the members in tokens; None if unbounded.
    """
    if limit is None or count(text) + _SLACK <= limit:
        return [("", text)]
    half = max(1, (limit - _SLACK) // 2)
    words = list(_short_words(text, count, half))
    costs = [count(word) for word in words]
    found, start = [], 0
    while start < len(words):
        end = _filled(costs, range(start, len(words)), half)
        first = start - _filled(costs[:start][::-1], range(start), half)
        found.append(("".join(words[first:start]), "".join(words[start:end])))
        start = end
    return found


def _filled(costs: Sequence[int], indices: range, room: int) -> int:
    """End of the longest run of indices whose costs fit into the room; at least one index, if there is one."""
    used = 0
    for index in indices:
        used += costs[index]
        if used > room and index > indices.start:
            return index
    return indices.stop


def _short_words(text: str, count: Callable[[str], int], most: int) -> Iterator[str]:
    """The words of a text; words of too many tokens are halved."""
    start = 0
    for end in [*WhitespaceWords().ends(text, final=True), len(text)]:
        yield from _halves(text[start:end], count, most)
        start = end


def _halves(word: str, count: Callable[[str], int], most: int) -> Iterator[str]:
    if len(word) > 1 and count(word) > most:
        middle = len(word) // 2
        yield from _halves(word[:middle], count, most)
        yield from _halves(word[middle:], count, most)
    elif word:
        yield word
