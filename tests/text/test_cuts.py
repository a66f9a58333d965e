"""Which tokenizers write the end of a text as they write it in the whole text, and from where on."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from adafuse_core import small_models
from adafuse_core.text.cuts import safe_cuts
from tests import tiny
from tests.text import tokenizers

# As families of models in wide use split their texts.
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
    """The kinds of places, each shown by an example, where texts are cut."""
    pattern = safe_cuts(tokenizer.backend_tokenizer)
    return [kind for kind in ALL if pattern and pattern.search(kind.replace("a |", "a ").replace("|", ""))]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_families_in_wide_use_are_cut_before_words_lines_and_stops(pattern):
    assert cuts(tiny.byte_level(380, pattern=pattern)) == ALL


@pytest.mark.parametrize("name", ["aspen", "birch"])
def test_the_small_models_are_cut_before_words(name):
    assert ALL[0] in cuts(AutoTokenizer.from_pretrained(small_models.path(name)))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_words_with_a_mark_are_cut_before_words_only(legacy, scheme):
    assert cuts(tokenizers.sentencepiece(legacy=legacy, scheme=scheme)) == ALL[:1]


def test_likeliest_pieces_of_each_word_are_cut_before_words_and_those_of_a_text_nowhere():
    assert cuts(tokenizers.unigram(split=True)) == ALL[:1]
    assert cuts(tokenizers.unigram(split=False)) == []


@pytest.mark.parametrize("make", [tiny.crossing, tokenizers.phrases])
def test_tokens_of_several_words_forbid_all_cuts(make):
    assert cuts(make()) == []


def test_a_pattern_that_looks_behind_forbids_all_cuts():
    assert cuts(tokenizers.looking_back()) == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b\w+|\s+|[^\s\w]+",  # looks behind too
        r"[\s\S]+?(?=\. |$)|.+",  # a sentence is a piece
        r"^ ?\p{L}+|\s+|\S+",
        r"(\p{L})\1|\s+|\S+",
        r"\p{L}+ ?|\s+|[^\s\p{L}]+",  # a blank belongs to the word before it
    ],
)
def test_patterns_that_are_not_local_or_put_blanks_elsewhere_forbid_cuts_before_words(pattern):
    assert ALL[0] not in cuts(tiny.byte_level(380, pattern=pattern))


def test_a_normalizer_that_may_do_anything_forbids_all_cuts():
    tokenizer = tiny.byte_level()
    for normalizer in (normalizers.Strip(), normalizers.Replace("a b", "c"), normalizers.BertNormalizer()):
        tokenizer.backend_tokenizer.normalizer = normalizer
        assert cuts(tokenizer) == []


def test_a_splitter_that_may_do_anything_forbids_all_cuts():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    assert cuts(tokenizer) == []


def test_accents_apart_from_their_letters_forbid_cuts_before_stops():
    assert cuts(tokenizers.decomposed()) == ALL[:2]


def test_added_words_forbid_the_cuts_inside_them():
    assert cuts(tokenizers.composed(AddedToken("<tool_call>"))) == ALL
    assert cuts(tokenizers.composed(AddedToken("New York"))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("New▁York"))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("New "))) == ALL[1:]
    assert cuts(tokenizers.composed(AddedToken("\nA"))) == [ALL[0], ALL[2]]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_words_that_look_at_their_neighbours_forbid_all_cuts(flag):
    assert cuts(tokenizers.composed(AddedToken("<br>", **{flag: True}))) == []


def test_a_model_that_draws_its_tokens_is_not_cut():
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.model = models.BPE(vocab={"a": 0}, merges=[], dropout=0.1)
    assert cuts(tokenizer) == []


def test_a_vocabulary_that_is_looked_up_before_it_is_merged_is_not_cut_where_texts_are_not_split():
    tokenizer = tokenizers.sentencepiece(legacy=True)
    tokenizer.backend_tokenizer.model.ignore_merges = True
    assert cuts(tokenizer) == []
