"""Reading the long lists of the curriculum from plain text."""

from __future__ import annotations


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def entries(text: str) -> list[str]:
    """The parts of a text between semicolons, with line breaks replaced by spaces."""
    return [" ".join(entry.split()) for entry in text.split(";") if entry.strip()]
