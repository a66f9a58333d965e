"""Which tokenizers have safe cuts, and where."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from adafuse_core import small_models
from adafuse_core.text.cuts import safe_cuts
from tests import tiny
from tests.text import tokenizers

# Pre-tokenizer patterns of widely used model families.
PATTERNS = {
    "llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
ALL = ["a |b", "\n|b", "語|。"]


def cuts(tokenizer):
    """The examples of `ALL` that the tokenizer can be cut at."""
    pattern = safe_cuts(tokenizer.backend_tokenizer)
    return [example for example in ALL if pattern and pattern.search(example.replace("a |", "a ").replace("|", ""))]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_widely_used_patterns_are_cut_before_words_lines_and_full_stops(pattern):
    assert cuts(tiny.byte_level(380, pattern=pattern)) == ALL


@pytest.mark.parametrize("name", ["aspen", "birch"])
def test_the_small_models_are_cut_before_words(name):
    assert ALL[0] in cuts(AutoTokenizer.from_pretrained(small_models.path(name)))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_sentencepiece_tokenizers_are_cut_before_words_only(legacy, scheme):
    assert cuts(tokenizers.sentencepiece(legacy=legacy, scheme=scheme)) == ALL[:1]


def test_unigram_models_are_cut_before_words_only_if_words_are_split_first():
    assert cuts(tokenizers.unigram(split=True)) == ALL[:1]
    assert cuts(tokenizers.unigram(split=False)) == []


@pytest.mark.parametrize("make", [tiny.crossing, tokenizers.phrases])
def test_tokens_that_span_words_forbid_all_cuts(make):
    assert cuts(make()) == []


def test_lookbehind_forbids_all_cuts():
    assert cuts(tokenizers.lookbehind()) == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b\w+|\s+|[^\s\w]+",  # \b looks behind
        r"[\s\S]+?(?=\. |$)|.+",  # pre-tokens are sentences
        r"^ ?\p{L}+|\s+|\S+",
        r"(\p{L})\1|\s+|\S+",
        r"\p{L}+ ?|\s+|[^\s\p{L}]+",  # a space belongs to the word before it
    ],
)
def test_patterns_that_are_not_local_or_split_after_spaces_forbid_cuts_before_words(pattern):
    assert ALL[0] not in cuts(tiny.byte_level(380, pattern=pattern))


def test_unknown_normalizers_forbid_all_cuts():
    tokenizer = tiny.byte_level()
    for normalizer in (normalizers.Strip(), normalizers.Replace("a b", "c"), normalizers.BertNormalizer()):
        tokenizer.backend_tokenizer.normalizer = normalizer
        assert cuts(tokenizer) == []


def test_unknown_pre_tokenizers_forbid_all_cuts():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    assert cuts(tokenizer) == []


def test_decomposed_accents_forbid_cuts_before_full_stops():
    assert cuts(tokenizers.decomposed()) == ALL[:2]


def test_added_tokens_forbid_the_cuts_inside_them():
    assert cuts(tokenizers.composed(AddedToken("<tool_call>"))) == ALL
    assert cuts(tokenizers.composed(AddedToken("New York"))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("New▁York"))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("New "))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("\nA"))) == [ALL[0], ALL[2]]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_depend_on_their_neighbours_forbid_all_cuts(flag):
    assert cuts(tokenizers.composed(AddedToken("<br>", **{flag: True}))) == []


def test_bpe_dropout_forbids_all_cuts():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.model = models.BPE(vocab={"a": 0}, merges=[], dropout=0.1)
    assert cuts(tokenizer) == []


def test_ignore_merges_without_pre_tokenization_forbids_all_cuts():
    tokenizer = tokenizers.sentencepiece(legacy=True)
    tokenizer.backend_tokenizer.model.ignore_merges = True
    assert cuts(tokenizer) == []
