"""Incremental encoding: only the last words are encoded again, and the ids are those of the whole text."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adafuse_core.text.incremental import EncodedText, IncrementalEncoder

CUTS = regex.compile(r"(?<=\S) (?=\S)")


class Words:
    """A tokenizer with one id per word, which depends on `behind` words before it and `ahead` words after it."""

    def __init__(self, behind=0, ahead=0):
        self.behind, self.ahead, self.whole_texts = behind, ahead, 0

    def encode(self, text):
        words = regex.findall(r" *[^ ]+| +$", text)
        neighbours = [tuple(words[max(0, i - self.behind) : i + self.ahead + 1]) for i in range(len(words))]
        return tuple(map(hash, neighbours))

    def encode_whole(self, text):
        self.whole_texts += 1
        return self.encode(text)

    def encoder(self):
        return IncrementalEncoder(self.encode_whole, self.encode, CUTS)

    def encoded(self, text):
        return EncodedText(text, self.encode(text))


TEXT = " ".join(f"word{index}" for index in range(40))


def test_a_text_grows_without_being_encoded_whole():
    tokenizer = Words()
    grown = tokenizer.encoder().grow(tokenizer.encoded(TEXT), TEXT + "s and more")
    assert grown.ids == tokenizer.encode(grown.text)
    assert tokenizer.whole_texts == 0


def test_the_cost_does_not_grow_with_the_text():
    read = []
    tokenizer = Words()
    encoder = IncrementalEncoder(
        tokenizer.encode_whole, lambda text: read.append(len(text)) or tokenizer.encode(text), CUTS
    )
    for length in (1, 10, 1000):
        encoder.grow(tokenizer.encoded(f"{TEXT} " * length + "so far"), f"{TEXT} " * length + "so far, so good")
    assert max(read) < 50
    assert read[:3] == read[3:6] == read[6:]


@pytest.mark.parametrize("behind", [0, 1, 2])
@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("addition", ["", "s", " and", " and more words", " ", "  "])
def test_words_that_depend_on_their_neighbours_have_the_ids_of_the_whole_text(behind, ahead, addition):
    tokenizer = Words(behind, ahead)
    grown = tokenizer.encoder().grow(tokenizer.encoded(TEXT), TEXT + addition)
    assert grown.ids == tokenizer.encode(TEXT + addition)


@pytest.mark.parametrize("feature", [lambda text: text[-1], lambda text: "!" in text], ids=["last letter", "any"])
def test_the_whole_text_is_encoded_if_the_ids_of_the_guard_change(feature):
    class WholeText(Words):
        def encode(self, text):  # every id depends on the whole text
            return tuple(hash((word, feature(text))) for word in text.split())

    tokenizer = WholeText()
    grown = tokenizer.encoder().grow(tokenizer.encoded(TEXT), TEXT + " new!")
    assert grown.ids == tokenizer.encode(TEXT + " new!")
    assert tokenizer.whole_texts == 1


@given(st.lists(st.sampled_from(["a", " a", " bc", "  ", " d\n", "e ", "\n"]), max_size=30), st.data())
@example(["a", " bc", " bc", " bc", " a"], None)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_text_may_grow_in_any_steps(parts, data):
    text = "".join(parts)
    lengths = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5))) if data else [3, 7, len(text)]
    tokenizer = Words()
    encoder, encoded = tokenizer.encoder(), tokenizer.encoded("")
    for length in lengths:
        encoded = encoder.grow(encoded, text[:length])
        assert encoded.text == text[:length]
        assert encoded.ids == tokenizer.encode(text[:length])


def test_without_safe_cuts_every_text_is_encoded_whole():
    tokenizer = Words()
    encoder = IncrementalEncoder(tokenizer.encode_whole, tokenizer.encode, None)
    assert encoder.grow(tokenizer.encoded(TEXT), TEXT + " x").ids == tokenizer.encode(TEXT + " x")
    assert tokenizer.whole_texts == 1
