"""The text that a scripted member writes, split into words."""

from __future__ import annotations

from bisect import bisect_right

from adafuse_core.errors import ConfigError
from adafuse_core.rounds import Span
from adafuse_core.text.words import WhitespaceWords

RULE = WhitespaceWords()
_FEW = 4  # length of the shortest end of an answer that is searched in a script, in characters


class Script:
    """A text in words; it repeats for ever if it doesn't end the answer.

    Args:
        text: The whole text.
        ends: Whether the answer ends after it.
        resumes: Whether, for an answer that differs from the script, the script continues after the longest end of the
            answer that it contains. If False or without such an end, it continues after as many words as the answer.
    """

    def __init__(self, text: str, *, ends: bool, resumes: bool = False) -> None:
        if not ends and not text.strip():
            raise ConfigError("got a blank reply with ends_answer=False", hint="give a reply that has a word")
        self._text = text
        self._repeats = not ends
        self._resumes = resumes
        self._word_ends = word_ends(text)

    def next_words(self, answer: str, count: int) -> Span:
        """The next `count` words after an answer."""
        text, word_ends = self._repeated(answer, count)
        start = self._position(answer, text, word_ends)
        ahead = word_ends[bisect_right(word_ends, start) :][:count]
        end = ahead[-1] if ahead else len(text)
        return Span(text=text[start:end], ends=not self._repeats and end == len(text))

    def continues(self, answer: str, span: Span) -> bool:
        """Whether the script continues an answer with this span."""
        text, word_ends = self._repeated(answer, count_words(span.text))
        ahead = text[self._position(answer, text, word_ends) :]
        return ahead.startswith(span.text) and (not span.ends or (not self._repeats and ahead == span.text))

    def _position(self, answer: str, text: str, word_ends: list[int]) -> int:
        """The offset in the script of the word that follows an answer."""
        if text.startswith(answer):
            return len(answer)
        if self._resumes and (position := _after_end_of(answer, text)):
            return position
        return [0, *word_ends][min(count_words(answer), len(word_ends))]

    def _repeated(self, answer: str, count: int) -> tuple[str, list[int]]:
        """The script and its word ends, repeated until `count` words follow the answer."""
        if not self._repeats:
            return self._text, self._word_ends
        words = len(self._word_ends)
        times = 2 + len(answer) // len(self._text) + (count_words(answer) + count) // words
        return self._text * times, [n * len(self._text) + end for n in range(times) for end in self._word_ends]


def _after_end_of(answer: str, text: str) -> int:
    """The offset in a text after the longest end of an answer that it contains; 0 without one of `_FEW` characters."""
    for length in range(min(len(answer), len(text)), _FEW - 1, -1):
        if (place := text.rfind(answer[-length:])) >= 0:
            return place + length
    return 0


def word_ends(text: str) -> list[int]:
    """Ends of the words; the last word includes the whitespace after it."""
    ends = RULE.ends(text, final=True)
    return [*ends[:-1], len(text)] if text else []


def count_words(text: str) -> int:
    """Number of words."""
    return len(RULE.ends(text, final=True))
