"""What a host drafts ahead, since it can't ask the caller after each step: words to their likely end, and branches.

The caller drops the steps beyond the end that it finds itself. So nothing here changes a text, only how many steps are
computed in vain and how many calls a word takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from adafuse_core.backends.base import TopTokens

_INSIDE, _AFTER_BLANK, _GAP, _CONTROL = range(4)  # kinds of tokens; all but the first can follow a word
_BLANKS = (" ", "Ġ", "▁", "\t")  # in texts, byte-level vocabularies and SentencePiece
_NEWLINES = ("\n", "Ċ", "<0x0A>")
_MOST_STEPS = 8  # per word
_USUAL_TAU = 0.7  # the default of the strategies
_STEPS_PER_WORD = 12  # steps already drafted for each further word that a call may end


def token_kinds(tokenizer: Any, size: int) -> bytes:
    """The kind of each token id: inside a word, after a blank, a gap between words, or a control token.

    A gap is only blanks, or has a newline at its end.
    """
    names = tokenizer.convert_ids_to_tokens(range(min(size, len(tokenizer))))
    kinds = bytearray(map(_kind, names))
    for token in tokenizer.all_special_ids:
        if token < len(kinds):
            kinds[token] = _CONTROL
    return bytes(kinds) + bytes([_CONTROL]) * (size - len(kinds))


def until_words(kinds: bytes, words: int, inside: Sequence[bool]) -> Callable[[int, Sequence[TopTokens]], bool]:
    """An `until` that ends a row when so many words have probably ended.

    A word ends before a token that starts with a blank, and before the first token after a gap.

    Args:
        kinds: The kind of each token.
        words: Number of words.
        inside: For each row, whether it begins inside a word.
    """
    ended: dict[int, int] = {}

    def until(row: int, steps: Sequence[TopTokens]) -> bool:
        kind = kinds[steps[-1].ids[0]]
        if kind == _CONTROL:
            return True
        if len(steps) > 1 or inside[row]:
            before = kinds[steps[-2].ids[0]] if len(steps) > 1 else _INSIDE
            ended[row] = ended.get(row, 0) + _starts_word(kind, before)
        return ended.get(row, 0) >= words

    return until


def _starts_word(kind: int, before: int) -> bool:
    return kind != _GAP and (kind == _AFTER_BLANK or before == _GAP)


def _kind(name: str | None) -> int:
    if not name:
        return _CONTROL
    if name.endswith(_NEWLINES) or not name.strip("".join(_BLANKS)):
        return _GAP
    return _AFTER_BLANK if name.startswith(_BLANKS) else _INSIDE


class Ahead:
    """How many steps a draft computes at most in one call, by how many of them were used so far.

    The ends of words are not always recognized: scripts without blanks have none. So the bound falls to the steps that
    words really take, and rises if it cuts them off.
    """

    def __init__(self) -> None:
        self._bound = _MOST_STEPS

    def steps(self, words: int) -> int:
        """Most steps of a call that may end so many words."""
        return self._bound * words

    def learn(self, computed: int, used: int, words: int) -> None:
        """Adapt the bound to a call inside words.

        Args:
            computed: Steps of the longest row.
            used: Steps of the longest row before the caller ended it.
            words: Number of words that the call was allowed to end.
        """
        if computed > used + 1:
            self._bound = max(1, used // words)
        elif computed == used >= self._bound * words:
            self._bound = min(_MOST_STEPS, 2 * self._bound)


class Certainty:
    """From which margin on the caller goes on with a draft, as far as its drafts have shown.

    Below, it starts branches with the likeliest tokens. The host does so in the same call, with the same passes.
    """

    def __init__(self) -> None:
        self._ended = 0.0  # the highest margin at which a draft ended with its first step
        self._continued = 1.0  # the lowest one at which it went on

    @property
    def bound(self) -> float:
        """The margin from which on the caller probably goes on."""
        return min(max(_USUAL_TAU, math.nextafter(self._ended, 1)), self._continued)

    def learn(self, first: TopTokens, *, ended: bool) -> None:
        """Note whether the caller ended a draft with its first step."""
        if ended:
            self._ended = max(self._ended, first.margin)
        else:
            self._continued = min(self._continued, first.margin)


def starting_tokens(kinds: bytes, step: TopTokens, count: int) -> list[int]:
    """The likeliest tokens that a branch can start with and go on; an end token ends it."""
    return [token for token in step.ids[:count] if kinds[token] != _CONTROL]


def words_to_end(steps: int) -> int:
    """Words that a call may end, from the steps that earlier calls of the same draft have added to the longest row.

    Whole answers are drafted with few calls; what is computed in vain is a fraction of what is used.
    """
    return 1 + steps // _STEPS_PER_WORD
