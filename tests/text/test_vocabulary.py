"""Vocabularies as bytes: the grammar engine gets exactly the bytes of each token."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from adafuse_core import Grammar, small_models
from adafuse_core.text.tokens import Codec
from adafuse_core.text.vocabulary import Vocabulary, byte_matchers
from tests import tiny
from tests.oracle import token_bytes
from tests.text import vocabularies
from tests.text.tokenizers import composed, decomposed, lookbehind, phrases, sentencepiece, unigram, wordpiece

TOKENIZERS = {
    "bytes": tiny.byte_level,
    "modern": lambda: tiny.byte_level(380, pattern=tiny.MODERN),
    "characters": tiny.characters,
    "crossing": tiny.crossing,
    "pieces": tiny.metaspace,
    "legacy": lambda: sentencepiece(legacy=True),
    "always": lambda: sentencepiece(scheme="always", control=True),
    "added words": lambda: composed(AddedToken("quick brown"), AddedToken("日本語", normalized=False)),
    "decomposed": decomposed,
    "aspen": lambda: AutoTokenizer.from_pretrained(small_models.path("aspen")),
    "birch": lambda: AutoTokenizer.from_pretrained(small_models.path("birch")),
    "tekken": vocabularies.tekken,
    "v3": vocabularies.v3,
}
TEXT = 'The quick brown été, "été"\n\t日本 😀 {"a": [1984, 3.14]} </s> <|im_end|>'


@functools.cache
def vocabulary(name):
    tokenizer = TOKENIZERS[name]()
    codec = Codec(tokenizer)
    size = len(tokenizer) + 3  # some models have more ids than tokens
    return tokenizer, codec, Vocabulary(tokenizer, codec, size=size)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_token_has_the_bytes_of_its_text(name):
    tokenizer, _, vocab = vocabulary(name)
    expected = token_bytes(tokenizer)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = [index for index in range(len(tokenizer)) if index not in special]
    valid = [index for index in ordinary if expected[index] != b"\xff"]  # reserved by the engine
    assert [index for index in valid if vocab.engine.decode_bytes([index]) != expected[index]] == []
    assert {index for index in range(len(tokenizer)) if vocab.engine.is_special_token(index)} >= special
    assert not any(vocab.engine.is_special_token(index) for index in valid if expected[index])


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "decomposed"])
def test_the_ids_of_a_text_have_the_bytes_of_the_text(name):
    _, codec, vocab = vocabulary(name)
    before, section = codec.encode_prompt("a")
    ids = section.encode(TEXT)
    assert (
        vocab.engine.decode_bytes(list(ids)).lstrip() == vocab.engine.decode_bytes([*before]).lstrip() + TEXT.encode()
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_without_a_token_are_masked(name):
    tokenizer, _, vocab = vocabulary(name)
    assert all(vocab.engine.is_special_token(len(tokenizer) + index) for index in range(3))


@pytest.mark.parametrize("name", ["bytes", "pieces", "v3"])
def test_any_bytes_can_be_encoded_byte_by_byte(name):
    _, _, vocab = vocabulary(name)
    data = bytes(range(255)) + "日本".encode()
    assert vocab.engine.decode_bytes(vocab.spelled(data)) == data
    assert min(vocab.spelled(data)) >= vocab.size


@pytest.mark.parametrize("make", [lookbehind, phrases, wordpiece, lambda: unigram(split=True)])
def test_tokenizers_unknown_to_the_engine_decode_their_own_tokens(make):
    tokenizer = make()
    codec = Codec(tokenizer)
    vocab = Vocabulary(tokenizer, codec, size=len(tokenizer))
    opening = codec.encode_prompt("a")[0]
    for index in range(len(tokenizer)):
        data = vocab.engine.decode_bytes([index])
        if not vocab.engine.is_special_token(index):
            assert data.decode() == codec.decode(opening, [index])
    known = [index for index in range(len(tokenizer)) if not vocab.engine.is_special_token(index)]
    assert len(known) > len(tokenizer) // 4


def test_grammars_over_bytes_are_compiled_once():
    source = Grammar.regex("[ab]+").source()
    matcher = byte_matchers()(source)
    assert byte_matchers()(source) is matcher
    assert int.from_bytes(matcher.compute_bitmask(), "little") == 1 << ord("a") | 1 << ord("b")


def test_the_engine_is_made_once_and_not_before_it_is_needed():
    tokenizer = tiny.byte_level()
    vocab = Vocabulary(tokenizer, Codec(tokenizer), size=len(tokenizer))
    assert vocab._engine is None
    assert vocab.engine is vocab.engine


def test_a_vocabulary_caches_its_grammars_and_is_garbage_collected():
    tokenizer = tiny.byte_level()
    vocab = Vocabulary(tokenizer, Codec(tokenizer), size=len(tokenizer))
    source = Grammar.regex("a+").source()
    assert vocab.matcher(source) is vocab.matcher(source)
    assert vocab.blank_bits
    kept = weakref.ref(vocab)
    del vocab
    gc.collect()
    assert kept() is None
