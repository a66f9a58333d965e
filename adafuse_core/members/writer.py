"""Follows one greedy continuation, token by token, and says where its words end.

A word ends at the first token boundary that is also a word boundary of the text: nothing is cut
inside a token, inside a word or inside a UTF-8 character. A word of `max_word_tokens` tokens is cut
where it stands.
"""

from __future__ import annotations

from collections.abc import Callable

from adafuse_core.text.ids import Ids
from adafuse_core.text.tokens import INCOMPLETE, MAX_UTF8_BYTES
from adafuse_core.text.words import WordRule, is_blank


class Writer:
    """The words of one continuation.

    Args:
        decode: Text of the tokens written so far.
        rule: Where words end.
        end_ids: Tokens that end an answer.
        max_word_tokens: Where a word without end is cut.
        start: Tokens already written before the first word to be found.

    Attributes:
        ids: All tokens written, `start` first; an end token is not among them.
        word_starts: Index in `ids` of each word's first token; the last word may be unfinished.
        ended: Whether the answer ends after `ids`.
    """

    def __init__(
        self,
        decode: Callable[[Ids], str],
        rule: WordRule,
        end_ids: frozenset[int],
        max_word_tokens: int,
        start: Ids = (),
    ) -> None:
        self._decode = decode
        self._rule = rule
        self._end_ids = end_ids
        self._max_word_tokens = max_word_tokens
        self._texts = {len(start): decode(start)}  # by number of tokens
        self.ids = list(start)
        self.word_starts = [len(start)]
        self.ended = False

    def push(self, token: int) -> None:
        """Write one more token, which may be an end token."""
        if token in self._end_ids:
            self.ended = True
        else:
            self.ids.append(token)
            self._texts[len(self.ids)] = self._decode(tuple(self.ids))
        while (end := self._word_end()) is not None:
            self.word_starts.append(end)

    def text(self, length: int) -> str:
        """Text of the first `length` tokens."""
        if length not in self._texts:  # before the end of `start`
            self._texts[length] = self._decode(tuple(self.ids[:length]))
        return self._texts[length]

    @property
    def words(self) -> int:
        """Number of words that are complete."""
        return len(self.word_starts) - 1

    @property
    def at_end(self) -> bool:
        """Whether nothing but blanks is left before the end of the answer."""
        return self.ended and is_blank(self._since_word_start(len(self.ids)))

    def _word_end(self) -> int | None:
        """Index after the last token of the word that is being written, if it is complete."""
        if self.word_starts[-1] == len(self.ids):
            return None
        ends = self._text_ends()
        end = self._token_boundary(ends) if ends else None
        return self._cut_off() if end is None else end

    def _text_ends(self) -> list[int]:
        """Where words of the text since the last word start end, in characters."""
        word = self._since_word_start(len(self.ids))
        if not self.ended:  # a character whose last bytes are still to come may be anything, also a stop or an accent
            return self._rule.ends(word.rstrip(INCOMPLETE))
        ends = self._rule.ends(word, final=True)
        return [*ends, len(word)] if ends else []  # blanks after the last word may belong to it

    def _token_boundary(self, ends: list[int]) -> int | None:
        """The first number of tokens whose text ends at one of these places."""
        start, here = self.word_starts[-1], len(self.ids)
        for length in range(start + 1, here + 1):
            text = self._texts[length]
            whole = not text.endswith(INCOMPLETE) or (self.ended and length == here)
            if whole and len(text) - len(self._texts[start]) in ends and self._texts[here].startswith(text):
                return length
        return None

    def _cut_off(self) -> int | None:
        """Where a word without end is cut: at the bound, or a few tokens later if that is inside a character."""
        word, tokens = self._since_word_start(len(self.ids)), len(self.ids) - self.word_starts[-1]
        spare = MAX_UTF8_BYTES - 1 if word.endswith(INCOMPLETE) else 0
        too_long = tokens >= self._max_word_tokens + spare
        return len(self.ids) if too_long and word and not self.ended else None

    def _since_word_start(self, length: int) -> str:
        return self._texts[length][len(self._texts[self.word_starts[-1]]) :]
