"""The text that a scripted member writes, cut into words."""

from __future__ import annotations

from bisect import bisect_right

from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Span
from adafuse_core.text.words import WhitespaceWords

RULE = WhitespaceWords()
_FEW = 4  # characters by which a place in a script is known again


class Script:
    """What is to be written, cut into words; without an end it goes round and round.

    Args:
        text: All of it.
        ends: Whether the answer ends after it.
        resumes: Whether, after an answer that departed from the script, it goes on where the script has the end of that
            answer, if it has it; else after as many words as the answer has.
    """

    def __init__(self, text: str, *, ends: bool, resumes: bool = False) -> None:
        if not ends and not text.strip():
            raise ConfigError("got a blank reply with ends_answer=False", hint="give a reply that has a word")
        self._text = text
        self._endless = not ends
        self._resumes = resumes
        self._word_ends = word_ends(text)

    def words_at(self, answer: str, count: int) -> Span:
        """So many words that go on from an answer."""
        text, word_ends = self._unrolled(answer, count)
        start = self._place(answer, text, word_ends)
        ahead = word_ends[bisect_right(word_ends, start) :][:count]
        end = ahead[-1] if ahead else len(text)
        return Span(text=text[start:end], ends=not self._endless and end == len(text))

    def continues(self, answer: str, span: Span) -> bool:
        """Whether the script goes on from an answer with this span."""
        text, word_ends = self._unrolled(answer, count_words(span.text))
        ahead = text[self._place(answer, text, word_ends) :]
        return ahead.startswith(span.text) and (not span.ends or (not self._endless and ahead == span.text))

    def _place(self, answer: str, text: str, word_ends: list[int]) -> int:
        """Where the script goes on after an answer."""
        if text.startswith(answer):
            return len(answer)
        if self._resumes and (place := _after_end_of(answer, text)):
            return place
        written = count_words(answer)
        return [0, *word_ends][min(written, len(word_ends))]

    def _unrolled(self, answer: str, count: int) -> tuple[str, list[int]]:
        """The script and its word ends, long enough for so many words after the answer."""
        if not self._endless:
            return self._text, self._word_ends
        words = len(self._word_ends)
        turns = 2 + len(answer) // len(self._text) + (count_words(answer) + count) // words
        ends = [turn * len(self._text) + end for turn in range(turns) for end in self._word_ends]
        return self._text * turns, ends


def _after_end_of(answer: str, text: str) -> int:
    """Where a text goes on after the longest end of an answer that it holds, of at least a few characters; else 0."""
    for length in range(min(len(answer), len(text)), _FEW - 1, -1):
        if (place := text.rfind(answer[-length:])) >= 0:
            return place + length
    return 0


def word_ends(text: str) -> list[int]:
    """Ends of the words; blanks after the last word are its own."""
    ends = RULE.ends(text, final=True)
    return [*ends[:-1], len(text)] if text else []


def count_words(text: str) -> int:
    """Words of a text."""
    return len(RULE.ends(text, final=True))
