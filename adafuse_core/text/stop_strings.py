"""Finds stop strings in a text that continues another one."""

from __future__ import annotations

from collections.abc import Sequence


def first_stop(before: str, text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins that `text` completes, as an index of `before + text`; None without one.

    Of stop strings that end at the same place, the longest one counts.
    """
    found = []
    for string in stop:
        start = max(0, len(before) + 1 - len(string))
        at = (before[start:] + text).find(string)
        if at >= 0:
            found.append((start + at + len(string), start + at))
    return min(found)[1] if found else None


def cut_after_stop(before: str, text: str, stop: Sequence[str]) -> str:
    """The beginning of `text` up to the end of the first stop string, which may start in the text before it."""
    kept = max(map(len, stop), default=1) - 1
    tail = before[len(before) - kept :] if kept else ""
    ends = [(tail + text).find(string) + len(string) for string in stop if string in tail + text]
    return text[: max(0, min(ends) - len(tail))] if ends else text
