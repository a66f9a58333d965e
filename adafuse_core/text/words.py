"""Where a word ends.

A word is optional blanks, a run of non-blanks, and the block of newlines that follows. That last part
keeps token boundaries stable: modern vocabularies glue a sentence's last character and the newlines
after it into one token. Scripts written without spaces are cut by Unicode word boundaries (UAX #29),
with closing punctuation kept on the word before it and opening punctuation on the word after it.
"""

from __future__ import annotations

from typing import Protocol

import regex

_WORD = regex.compile(r"\s*(\S+)(?:\s*[\r\n]+)?")
_BLANK = regex.compile(r"\s*")
_SCRIPTS = "Han Hiragana Katakana Bopomofo Thai Lao Khmer Myanmar Tibetan Javanese Balinese Tai_Le New_Tai_Lue Tai_Tham"
_SPACELESS = regex.compile("[" + "".join(rf"\p{{Script={name}}}" for name in _SCRIPTS.split()) + "]")
_BOUNDARY = regex.compile(r"\b", flags=regex.WORD)
_CLUSTER = regex.compile(r"\X")  # what a reader sees as one character: a boundary may lie inside, as in Thai "ทำ"
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}]")
_CLOSING = regex.compile(r"[\p{P}--[\p{Ps}\p{Pi}]]", flags=regex.V1)
_JOINING = regex.compile(r"[\p{P}\p{M}\p{Cf}]")
# Whether there is a boundary before these depends on what follows them (rules WB6, 7, 11 and 12 of UAX #29).
_HINGE = regex.compile(
    r"(?<=[\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}][\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*)"
    r"[\p{WB=MidLetter}\p{WB=MidNum}\p{WB=MidNumLet}]"
)


class WordRule(Protocol):
    """A strategy object that finds words; all members of an ensemble share one."""

    def ends(self, text: str, *, final: bool = False) -> list[int]:
        """Ends of the complete words of `text`, which starts where a word starts.

        Args:
            text: What has been written so far.
            final: Whether nothing follows. Otherwise only ends that no continuation can move
                are returned: a word is complete when a later non-blank character is there.

        Returns:
            Ascending character offsets; blanks after the last word belong to the next one.
        """


class WhitespaceWords:
    """The default rule: `\\s*\\S+(\\s*[\\r\\n]+)?`, and UAX #29 words in scripts without spaces."""

    def ends(self, text: str, *, final: bool = False) -> list[int]:
        """Ends of the complete words; see `WordRule.ends`."""
        if not final and text.isascii() and len(text.split(None, 1)) < 2:
            return []  # one word that may continue: the most frequent case, once per token
        ends: list[int] = []
        position = 0
        while match := _WORD.match(text, position):
            position = match.end()
            ends += _ends_without_spaces(text, match.start(1), match.end(1))
            if final or not is_blank(text[position:]):
                ends.append(position)
        return ends


def is_blank(text: str) -> bool:
    """Whether `text` has no visible character (the empty text has none)."""
    return _BLANK.fullmatch(text) is not None


def _ends_without_spaces(text: str, start: int, end: int) -> list[int]:
    """Word ends strictly inside the non-blank run `text[start:end]`."""
    run = text[start:end]
    if run.isascii() or not _SPACELESS.search(run):
        return []
    whole = {match.end() for match in _CLUSTER.finditer(run)}
    cuts = (match.start() for match in _BOUNDARY.finditer(run))
    return [start + cut for cut in cuts if 0 < cut < len(run) and cut in whole and _separates(run, cut)]


def _separates(run: str, cut: int) -> bool:
    """Whether a Unicode word boundary inside a run ends a word of ours."""
    if _CLOSING.match(run[cut]) or _OPENING.match(run[cut - 1]) or _HINGE.match(run, cut):
        return False
    before = cut - 1
    while before > 0 and _JOINING.match(run[before]):
        before -= 1
    return bool(_SPACELESS.match(run[before]) or _SPACELESS.match(run[cut]))
