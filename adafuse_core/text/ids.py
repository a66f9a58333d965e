"""Token ids as this library passes them around."""

from __future__ import annotations

Ids = tuple[int, ...]


def shared_length(first: Ids | str, second: Ids | str) -> int:
    """Length of the longest common prefix of two id sequences, or of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # binary search over slices: a loop over single ids is slow for long prompts
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
