"""Where a text can be cut so that its tail, encoded alone, gets the same ids as inside the whole text.

A cut is safe if the tokenizer pre-tokenizes by local rules and always splits there, or if no token of the vocabulary
can span the cut. The tokenizer's components show which case applies. If a component may look further than the
neighbouring character (other normalizers, a regular expression with lookbehind), no cut is safe and texts are encoded
whole.
"""

from __future__ import annotations

import json
from typing import Any

import regex
from tokenizers import Tokenizer

MARK = "▁"  # a space in SentencePiece vocabularies

_BEFORE_SPACE = r"(?<=[\p{L}\p{N}\p{P}]) (?=[\p{L}\p{N}\p{P}])"  # a single space between words
_CUTS = (
    _BEFORE_SPACE,
    r"(?<=\n)(?=[\p{L}\p{N}])",  # the beginning of a line
    r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}])(?=[、。，．！？：；])",  # before a full stop or comma, without spaces
)
_NORMALIZERS = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace"}
_PRE_TOKENIZERS = {
    *("Sequence", "Split", "ByteLevel", "Metaspace", "Digits"),
    *("Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"),
}
# Regular expressions without lookbehind, and with a lookahead of at most one character.
_LOCAL_REGEX = regex.compile(
    r"(?:\[(?:[^\[\]\\]|\\.)+\]|\\[pP]\{\^?\w+\}|\\[sSdDwWrnt]"  # classes
    r"|\(\?!\\S\)|\(\?i?:|[()|]|[?+*]|\{\d+(?:,\d*)?\}| \?|['’\p{L}])+"  # groups, counts, an optional space, letters
)
_PROBE = (
    "The quick (brown) fox's 3 paws, 1984. “Don't” said A. B. C, 12 345! f(x) = y; ÉTÉ déjà Ça v'a-t-il? été。が。\n"
    "Next 42.\n\nall:\n    return x # why?\n日本語。「世界」は、広い！中文，也可以。 好 ﬁ ½ Ⅳ 한국어 사람。 ไทย คำ\r\n"
    "1a A1 b2 ...yes ,no\n"
)


def safe_cuts(tokenizer: Tokenizer) -> regex.Pattern[str] | None:
    """A pattern whose matches start at safe cuts; None if there are none."""
    added = tokenizer.get_added_tokens_decoder().values()
    model = tokenizer.model
    if (
        not all(part["type"] in _NORMALIZERS and _is_local(part) for part in _components(tokenizer.normalizer))
        or not all(part["type"] in _PRE_TOKENIZERS and _is_local(part) for part in _components(tokenizer.pre_tokenizer))
        or getattr(model, "dropout", None)
        or any(token.lstrip or token.rstrip or token.single_word for token in added if not token.special)
    ):
        return None
    # The model encodes each pre-token separately, so the boundary of two pre-tokens is a safe cut.
    cuts = [cut for cut in _CUTS if _pre_tokens_agree(tokenizer, regex.compile(cut))]
    if not cuts and type(model).__name__ == "BPE" and not model.ignore_merges and _no_token_spans_words(tokenizer):
        cuts = [_BEFORE_SPACE]
    contents = [token.content.replace(MARK, " ") + "a" for token in added]
    cuts = [cut for cut in cuts if not any(regex.search(cut, content) for content in contents)]
    return regex.compile("|".join(cuts)) if cuts else None


def _is_local(part: dict[str, Any]) -> bool:
    pattern = part.get("pattern", {})
    if part["type"] == "Replace":
        return bool(pattern == {"String": " "} and part["content"] == MARK)
    return len(pattern.get("String", "")) < 2 and bool(_LOCAL_REGEX.fullmatch(pattern.get("Regex", "a")))


def _components(part: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer and the members of its sequence, as in `tokenizer.json`."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return [state, *state.get("normalizers", []), *state.get("pretokenizers", [])]


def _pre_tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _pre_tokens_agree(tokenizer: Tokenizer, cut: regex.Pattern[str]) -> bool:
    """Whether the text after each cut of the probe has the same pre-tokens alone as in the whole probe."""
    whole = _pre_tokens(tokenizer, _PROBE)
    tails = [_pre_tokens(tokenizer, _PROBE[match.start() :]) for match in cut.finditer(_PROBE)]
    return all(whole[-len(tail) :] == tail for tail in tails)


def _no_token_spans_words(tokenizer: Tokenizer) -> bool:
    """Whether a text is one pre-token with marks for spaces, and every token has its marks at the start only."""
    pieces = _pre_tokens(tokenizer, "a b")
    if len(pieces) != 1 or not pieces[0].endswith(f"a{MARK}b"):
        return False
    model, vocab = tokenizer.model, tokenizer.get_vocab(with_added_tokens=False)
    affixes = model.continuing_subword_prefix or model.end_of_word_suffix
    return MARK in vocab and not affixes and not regex.search(rf"[^{MARK}\0]{MARK}", "\0".join(vocab))
