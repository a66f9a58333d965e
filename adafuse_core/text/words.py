"""Where a word ends.

A word is optional whitespace, a run of other characters, and the newlines that follow. The newlines keep token
boundaries stable: modern vocabularies merge a sentence's last character and the newlines after it into one token.
Scripts without spaces are split at Unicode word boundaries (UAX #29); closing punctuation belongs to the word before
it, opening punctuation to the word after it.
"""

from __future__ import annotations

from typing import Protocol

import regex

_WORD = regex.compile(r"\s*(\S+)(?:\s*[\r\n]+)?")
_WHITESPACE = regex.compile(r"\s*")
_SCRIPTS = "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar Tibetan Javanese Balinese Tai_Le New_Tai_Lue Tai_Tham"
_SPACELESS = regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in _SCRIPTS.split()) + "]")
_BOUNDARY = regex.compile(r"\b", flags=regex.WORD)
_GRAPHEME = regex.compile(r"\X")  # a user-perceived character; a word boundary may lie inside, as in Thai "ทำ"
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")
_CLOSING = regex.compile(r"[\p{P}--[\p{Ps}\p{Pi}]]", flags=regex.V1)
_JOINING = regex.compile(r"[\p{P}\p{M}\p{Cf}]")
# A boundary before these characters depends on the character after them (rules WB6, 7, 11 and 12 of UAX #29).
_HINGE = regex.compile(
    r"(?<=[\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}][\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*)"
    r"[\p{WB=MidLetter}\p{WB=MidNum}\p{WB=MidNumLet}]"
)


class WordRule(Protocol):
    """Finds words; all members of an ensemble share one rule."""

    def ends(self, text: str, *, final: bool = False) -> list[int]:
        """Ends of the complete words of `text`, which starts at the start of a word.

        Args:
            text: The text so far.
            final: Whether the text is finished. Otherwise only ends that no continuation can move are returned: a
                word is complete once a later non-whitespace character follows.

        Returns:
            Ascending character offsets; whitespace after the last word belongs to the next one.
        """


class WhitespaceWords:
    """The default rule: `\\s*\\S+(\\s*[\\r\\n]+)?`, and UAX #29 words in scripts without spaces."""

    def ends(self, text: str, *, final: bool = False) -> list[int]:
        """Ends of the complete words; see `WordRule.ends`."""
        if not final and text.isascii() and len(text.split(None, 1)) < 2:
            return []  # an unfinished word, the most frequent case: called once per token
        ends: list[int] = []
        position = 0
        while match := _WORD.match(text, position):
            position = match.end()
            ends += _ends_inside(text, match.start(1), match.end(1))
            if final or not is_blank(text[position:]):
                ends.append(position)
        return ends


def is_blank(text: str) -> bool:
    """Whether `text` is empty or whitespace."""
    return _WHITESPACE.fullmatch(text) is not None


def _ends_inside(text: str, start: int, end: int) -> list[int]:
    """Word ends strictly inside `text[start:end]`, a run without whitespace."""
    run = text[start:end]
    if run.isascii() or not _SPACELESS.search(run):
        return []
    grapheme_ends = {match.end() for match in _GRAPHEME.finditer(run)}
    cuts = (match.start() for match in _BOUNDARY.finditer(run))
    return [start + cut for cut in cuts if 0 < cut < len(run) and cut in grapheme_ends and _separates(run, cut)]


def _separates(run: str, cut: int) -> bool:
    """Whether a Unicode word boundary inside a run ends a word of this rule."""
    if _CLOSING.match(run[cut]) or _OPENING.match(run[cut - 1]) or _HINGE.match(run, cut):
        return False
    before = cut - 1
    while before > 0 and _JOINING.match(run[before]):
        before -= 1
    return bool(_SPACELESS.match(run[before]) or _SPACELESS.match(run[cut]))
