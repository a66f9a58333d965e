"""Places where a text can be cut so that a tokenizer writes what follows as it writes it in the whole text.

Such places exist if the tokenizer splits a text by local rules before it looks for tokens, or if no token
of its vocabulary could lie across them. The parts of a tokenizer show whether that is so. A tokenizer with a part that
is not known to be local (a normalizer of whole clusters, a regular expression that looks behind) has no such places,
and every text is encoded as a whole.
"""

from __future__ import annotations

import json
from typing import Any

import regex
from tokenizers import Tokenizer

MARK = "▁"  # what vocabularies of the SentencePiece kind write for a blank

_KINDS = (
    r"(?<=[\p{L}\p{N}\p{P}]) (?=[\p{L}\p{N}\p{P}])",  # before one blank between words
    r"(?<=\n)(?=[\p{L}\p{N}])",  # at the beginning of a line
    r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}])(?=[、。，．！？：；])",  # before a stop, in scripts without blanks
)
_BLANK = _KINDS[0]
_NORMALIZERS = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace"}
_SPLITTERS = {
    *("Sequence", "Split", "ByteLevel", "Metaspace", "Digits"),
    *("Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"),
}
# Regular expressions whose matches depend on nothing before them, and on no more than a character after them.
_LOCAL = regex.compile(
    r"(?:\[(?:[^\[\]\\]|\\.)+\]|\\[pP]\{\^?\w+\}|\\[sSdDwWrnt]"  # classes
    r"|\(\?!\\S\)|\(\?i?:|[()|]|[?+*]|\{\d+(?:,\d*)?\}| \?|['’\p{L}])+"  # groups, counts, an optional blank, letters
)
_PROBE = (
    "The quick (brown) fox's 3 paws, 1984. “Don't” said A. B. C, 12 345! f(x) = y; ÉTÉ déjà Ça v'a-t-il? été。が。\n"
    "Next 42.\n\nall:\n    return x # why?\n日本語。「世界」は、広い！中文，也可以。 好 ﬁ ½ Ⅳ 한국어 사람。 ไทย คำ\r\n"
    "1a A1 b2 ...yes ,no\n"
)


def safe_cuts(tokenizer: Tokenizer) -> regex.Pattern[str] | None:
    """A pattern whose matches begin where texts may be cut; None if there are no safe places."""
    if not _parts_are_local(tokenizer):
        return None
    model = tokenizer.model
    # Byte-pair and other models see the pieces of a split text one by one.
    kinds = [kind for kind in _KINDS if _splits(tokenizer, regex.compile(kind))]
    if not kinds and type(model).__name__ == "BPE" and not model.ignore_merges and _keeps_words_apart(tokenizer):
        kinds = [_BLANK]
    contents = [token.content.replace(MARK, " ") for token in tokenizer.get_added_tokens_decoder().values()]
    kinds = [kind for kind in kinds if not any(regex.search(kind, content + "a") for content in contents)]
    return regex.compile("|".join(kinds)) if kinds else None


def _parts_are_local(tokenizer: Tokenizer) -> bool:
    normalizers, splitters = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    return (
        all(part["type"] in _NORMALIZERS and _is_local(part) for part in normalizers)
        and all(part["type"] in _SPLITTERS and _is_local(part) for part in splitters)
        and not getattr(tokenizer.model, "dropout", None)
        and not any(
            token.lstrip or token.rstrip or token.single_word
            for token in tokenizer.get_added_tokens_decoder().values()
            if not token.special
        )
    )


def _is_local(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern", {})
    if part["type"] == "Replace":
        return bool(pattern == {"String": " "} and part["content"] == MARK)
    return len(pattern.get("String", "")) < 2 and bool(_LOCAL.fullmatch(pattern.get("Regex", "a")))


def _state(part: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as a tokenizer file holds them."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return [state, *state.get("normalizers", []), *state.get("pretokenizers", [])]


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _splits(tokenizer: Tokenizer, kind: regex.Pattern[str]) -> bool:
    """Whether a tokenizer splits texts at all places of a kind, and what follows as if it stood alone."""
    whole = _pieces(tokenizer, _PROBE)
    ends = [_pieces(tokenizer, _PROBE[match.start() :]) for match in kind.finditer(_PROBE)]
    return all(whole[-len(end) :] == end for end in ends)


def _keeps_words_apart(tokenizer: Tokenizer) -> bool:
    """Whether blanks become marks in one long piece, and no token has a mark after something else."""
    if not (pieces := _pieces(tokenizer, "a b"))[0].endswith(f"a{MARK}b"):
        return False
    model, vocab = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    affixes = model.continuing_subword_prefix or model.end_of_word_suffix
    across = regex.search(rf"[^{MARK}\0]{MARK}", "\0".join(vocab))
    return len(pieces) == 1 and MARK in vocab and not affixes and not across
