"""Token ids as this library passes them around."""

from __future__ import annotations

Ids = tuple[int, ...]


def shared_length(first: Ids | str, second: Ids | str) -> int:
    """Length of the common beginning of two id sequences, or of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # slices are compared by halves, since a loop over single ids is slow on long prompts
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
