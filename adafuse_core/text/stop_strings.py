"""Finds stop strings in a text that continues another one."""

from __future__ import annotations

from collections.abc import Sequence


def has_stop(before: str, text: str, stop: Sequence[str]) -> bool:
    """Whether `text` completes a stop string, which may start in the text before it."""
    tails = ((string, before[max(0, len(before) + 1 - len(string)) :]) for string in stop)
    return any(string in tail + text for string, tail in tails)


def cut_after_stop(before: str, text: str, stop: Sequence[str]) -> str:
    """The beginning of `text` up to the end of the first stop string, which may start in the text before it."""
    kept = max(map(len, stop), default=1) - 1
    tail = before[len(before) - kept :] if kept else ""
    ends = [(tail + text).find(string) + len(string) for string in stop if string in tail + text]
    return text[: max(0, min(ends) - len(tail))] if ends else text
