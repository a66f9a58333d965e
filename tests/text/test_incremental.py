"""A text that grows: its last words alone are encoded again, but only where that is known to be the same."""

from __future__ import annotations

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adafuse_core.text.incremental import EncodedText, IncrementalEncoder

CUTS = regex.compile(r"(?<=\S) (?=\S)")


class Words:
    """A tokenizer with one id per word; `reach` words before and after it change its id."""

    def __init__(self, behind=0, ahead=0):
        self.behind, self.ahead, self.wholes = behind, ahead, 0

    def encode(self, text):
        words = regex.findall(r" *[^ ]+| +$", text)
        near = [tuple(words[max(0, i - self.behind) : i + self.ahead + 1]) for i in range(len(words))]
        return tuple(hash(words) for words in near)

    def whole(self, text):
        self.wholes += 1
        return self.encode(text)

    def encoder(self):
        return IncrementalEncoder(self.whole, self.encode, CUTS)

    def written(self, text):
        return EncodedText(text, self.encode(text))


TEXT = " ".join(f"word{index}" for index in range(40))


def test_a_text_grows_without_being_encoded_as_a_whole():
    tokenizer = Words()
    grown = tokenizer.encoder().grow(tokenizer.written(TEXT), TEXT + "s and more")
    assert grown.ids == tokenizer.encode(grown.text)
    assert tokenizer.wholes == 0


def test_what_is_encoded_again_does_not_grow_with_the_text():
    read = []
    tokenizer = Words()
    encoder = IncrementalEncoder(tokenizer.whole, lambda text: read.append(len(text)) or tokenizer.encode(text), CUTS)
    for length in (1, 10, 1000):
        encoder.grow(tokenizer.written(f"{TEXT} " * length + "so far"), f"{TEXT} " * length + "so far, so good")
    assert max(read) < 50
    assert read[:3] == read[3:6] == read[6:]


@pytest.mark.parametrize("behind", [0, 1, 2])
@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("addition", ["", "s", " and", " and more words", " ", "  "])
def test_words_that_depend_on_their_neighbours_are_written_as_in_the_whole_text(behind, ahead, addition):
    tokenizer = Words(behind, ahead)
    grown = tokenizer.encoder().grow(tokenizer.written(TEXT), TEXT + addition)
    assert grown.ids == tokenizer.encode(TEXT + addition)


@pytest.mark.parametrize("far", [lambda text: text[-1], lambda text: "!" in text], ids=["last letter", "any letter"])
def test_a_guard_that_changes_as_the_text_grows_has_the_whole_text_encoded(far):
    class Far(Words):
        def encode(self, text):  # what stands at the end changes every id
            return tuple(hash((word, far(text))) for word in text.split())

    tokenizer = Far()
    grown = tokenizer.encoder().grow(tokenizer.written(TEXT), TEXT + " new!")
    assert grown.ids == tokenizer.encode(TEXT + " new!")
    assert tokenizer.wholes == 1


@given(st.lists(st.sampled_from(["a", " a", " bc", "  ", " d\n", "e ", "\n"]), max_size=30), st.data())
@example(["a", " bc", " bc", " bc", " a"], None)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_any_beginning_may_grow_to_any_text_through_any_others(parts, data):
    text = "".join(parts)
    lengths = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5))) if data else [3, 7, len(text)]
    tokenizer = Words()
    encoder, written = tokenizer.encoder(), tokenizer.written("")
    for length in lengths:
        written = encoder.grow(written, text[:length])
        assert written.text == text[:length]
        assert written.ids == tokenizer.encode(text[:length])


def test_without_safe_cuts_every_text_is_encoded_as_a_whole():
    tokenizer = Words()
    encoder = IncrementalEncoder(tokenizer.whole, tokenizer.encode, None)
    assert encoder.grow(tokenizer.written(TEXT), TEXT + " x").ids == tokenizer.encode(TEXT + " x")
    assert tokenizer.wholes == 1
