"""Finds the words of one greedy continuation, token by token.

A word ends at the first token boundary that is also a word boundary of the text: no token, word or UTF-8 character is
split. A word of `max_word_tokens` tokens is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adafuse_core.text.ids import Ids
from adafuse_core.text.tokens import INCOMPLETE, MAX_UTF8_BYTES
from adafuse_core.text.words import WordRule, is_blank


@dataclass
class WordTracker:
    """The words of one continuation."""

    decode: Callable[[Ids], str]  # text of the continuation's tokens
    rule: WordRule
    end_ids: frozenset[int]  # tokens that end an answer
    max_word_tokens: int
    start: Ids = ()  # tokens of the continuation before the first word to find

    def __post_init__(self) -> None:
        self._texts = {len(self.start): self.decode(self.start)}  # by number of tokens
        self.ids = list(self.start)  # all tokens of the continuation, end tokens excluded
        self.word_starts = [len(self.start)]  # index in `ids` of each word's first token; the last may be unfinished
        self.ended = False  # whether an end token followed

    def push(self, token: int) -> None:
        """Append a token, or end the continuation with an end token."""
        if token in self.end_ids:
            self.ended = True
        else:
            self.ids.append(token)
            self._texts[len(self.ids)] = self.decode(tuple(self.ids))
        while (end := self._word_end()) is not None:
            self.word_starts.append(end)

    def text(self, length: int | None = None) -> str:
        """Text of the first `length` tokens; None for all."""
        length = len(self.ids) if length is None else length
        if length not in self._texts:  # inside `start`
            self._texts[length] = self.decode(tuple(self.ids[:length]))
        return self._texts[length]

    @property
    def words(self) -> int:
        """Number of complete words."""
        return len(self.word_starts) - 1

    @property
    def at_end(self) -> bool:
        """Whether the answer ends here, with only whitespace after the last complete word."""
        return self.ended and is_blank(self._unfinished_word())

    def _unfinished_word(self) -> str:
        return self.text()[len(self._texts[self.word_starts[-1]]) :]

    def _word_end(self) -> int | None:
        """Index after the last token of the current word, if the word is complete."""
        if self.word_starts[-1] == len(self.ids):
            return None
        ends = self._text_ends()
        end = self._token_boundary(ends) if ends else None
        return self._length_limit() if end is None else end

    def _text_ends(self) -> list[int]:
        """Character offsets of word ends in the unfinished word."""
        word = self._unfinished_word()
        if not self.ended:  # an incomplete character may turn out to belong to the word: punctuation or an accent
            return self.rule.ends(word.rstrip(INCOMPLETE))
        ends = self.rule.ends(word, final=True)
        return [*ends, len(word)] if ends else []  # the last word may include the whitespace after it

    def _token_boundary(self, ends: list[int]) -> int | None:
        """The smallest number of tokens whose text ends at one of the offsets."""
        start, count = self.word_starts[-1], len(self.ids)
        for length in range(start + 1, count + 1):
            text = self._texts[length]
            complete = not text.endswith(INCOMPLETE) or (self.ended and length == count)
            if complete and len(text) - len(self._texts[start]) in ends and self._texts[count].startswith(text):
                return length
        return None

    def _length_limit(self) -> int | None:
        """Where a word that is too long is cut off: at the token limit, or after the character that it falls into."""
        word, tokens = self._unfinished_word(), len(self.ids) - self.word_starts[-1]
        spare = MAX_UTF8_BYTES - 1 if word.endswith(INCOMPLETE) else 0
        too_long = tokens >= self.max_word_tokens + spare
        return len(self.ids) if too_long and word and not self.ended else None
