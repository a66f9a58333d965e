"""Words of a continuation that comes token by token: at token boundaries, never inside a word or a character."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adafuse_core.members.writer import Writer
from adafuse_core.text.words import WhitespaceWords, is_blank

END = -1
CONTROL = -2  # a token without text
RULE = WhitespaceWords()
many = settings(deadline=None, max_examples=300)

TEXTS = [
    "The quick brown fox",
    "def f(x):\n    return x\n\n\nclass A:\n\tpass\n",
    "  leading  and trailing  \n",
    "日本語。「世界」は広い",
    "👩‍👩‍👧 🇩🇪 ok",
    "one\r\ntwo\n \n three",
    "",
    "   ",
]


class Tokens:
    """A continuation: the bytes of each token, by id."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[index] for index in ids if index >= 0).decode(errors="replace")

    def writer(self, cap=24, start=()):
        return Writer(self.decode, RULE, frozenset({END}), cap, start)

    def write(self, *, ended=True, cap=24, skip=0):
        writer = self.writer(cap, tuple(range(skip)))
        for index in range(skip, len(self.pieces)):
            writer.push(index)
        if ended:
            writer.push(END)
        return writer


def cut(data, text):
    """The bytes of a text, cut anywhere, inside characters too."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=len(raw))))
    return Tokens([raw[a:b] for a, b in itertools.pairwise([0, *(c for c in cuts if c < len(raw)), len(raw)]) if a < b])


texts = st.sampled_from(TEXTS) | st.text("ab .\n日本é😀", max_size=12)


def words(writer):
    return [writer.text(b)[len(writer.text(a)) :] for a, b in itertools.pairwise(writer.word_starts)]


@given(texts, st.data())
@many
def test_words_are_whole_words_at_token_boundaries(text, data):
    writer = cut(data, text).write()
    rest = text
    for word in words(writer):
        assert word in [rest[:end] for end in [*RULE.ends(rest, final=True), len(rest)]]
        rest = rest[len(word) :]
    assert is_blank(rest)
    assert writer.at_end
    assert writer.text(len(writer.ids)) == text


@given(texts, st.data())
@many
def test_one_character_per_token_gives_exactly_the_words_of_the_rule(text, data):
    writer = Tokens([character.encode() for character in text]).write()
    expected, rest = [], text
    while ends := RULE.ends(rest, final=True):
        expected.append(rest[: ends[0]])
        rest = rest[ends[0] :]
    assert words(writer) == expected


def test_an_incomplete_character_confirms_no_word_before_it():
    stop = "。".encode()
    writer = Tokens(["日本".encode(), stop[:1], stop[1:], b"x"])
    assert words(writer.write()) == ["日本。", "x"]
    accent = "\u3099".encode()
    assert words(Tokens(["日か".encode(), accent[:2], accent[2:], b"x"]).write()) == ["日か\u3099", "x"]


@given(texts, st.data())
@many
def test_words_once_found_stay(text, data):
    tokens = cut(data, text)
    writer, found = tokens.writer(), [0]
    for index in range(len(tokens.pieces)):
        writer.push(index)
        assert writer.word_starts[: len(found)] == found
        found = list(writer.word_starts)
    writer.push(END)
    assert writer.word_starts[: len(found)] == found


@given(texts, st.data())
@many
def test_an_unfinished_continuation_finds_no_word_that_could_still_grow(text, data):
    tokens = cut(data, text)
    going, done = tokens.write(ended=False), tokens.write()
    assert done.word_starts[: len(going.word_starts)] == going.word_starts
    assert going.word_starts[-1] < len(tokens.pieces) or not text


@given(texts, st.data())
@many
def test_words_after_committed_ones_are_those_of_one_run(text, data):
    """So it makes no difference how many words are drafted per round."""
    tokens = cut(data, text)
    starts = tokens.write().word_starts
    for skip, following in itertools.pairwise(starts):
        before = tokens.decode(range(skip))
        later = Writer(
            lambda ids, skip=skip, before=before: tokens.decode([*range(skip), *ids])[len(before) :],
            RULE,
            frozenset({END}),
            24,
        )
        for index in range(skip, len(tokens.pieces)):
            later.push(index)
        later.push(END)
        assert later.word_starts[1] + skip == following


@given(texts, st.integers(1, 5), st.data())
@many
def test_no_word_takes_more_tokens_than_the_cap_but_for_a_whole_character(text, cap, data):
    bytewise = data.draw(st.booleans())
    writer = (Tokens([bytes([byte]) for byte in text.encode()]) if bytewise else cut(data, text)).write(cap=cap)
    for start, end in itertools.pairwise(writer.word_starts):
        assert end - start <= cap + 3
        assert not bytewise or not writer.text(end).endswith("\ufffd")
    if bytewise:
        assert "".join(words(writer)) + text[len(writer.text(writer.word_starts[-1])) :] == text


def test_a_word_without_end_is_cut_at_the_cap():
    writer = Tokens([b"a"] * 10).write(ended=False, cap=4)
    assert writer.word_starts == [0, 4, 8]


def test_a_cap_inside_a_character_waits_for_its_end():
    writer = Tokens([b"a", *[bytes([byte]) for byte in "😀".encode()], b"b"]).write(ended=False, cap=2)
    assert words(writer)[0] == "a😀"


def test_stray_bytes_do_not_hold_up_the_cap_for_ever():
    assert Tokens([b"\xff"] * 12).write(ended=False, cap=2).words > 0


def test_tokens_without_text_make_no_word():
    tokens = Tokens([b"a", b" b"])
    writer = tokens.writer(cap=3)
    for token in [CONTROL] * 7:
        writer.push(token)
    assert writer.words == 0
    assert not writer.at_end
    writer.push(END)
    assert writer.at_end


def test_control_tokens_belong_to_the_word_that_follows():
    tokens = Tokens([b"one", b" two"])
    writer = tokens.writer()
    for token in (0, CONTROL, 1, END):
        writer.push(token)
    assert words(writer) == ["one", " two"]
    assert writer.ids == [0, CONTROL, 1]


@pytest.mark.parametrize("pieces", [[], [b" "], [b"\n", b" "]])
def test_an_end_after_nothing_but_blanks_is_an_end(pieces):
    writer = Tokens(pieces).write()
    assert writer.words == 0
    assert writer.at_end


def test_without_an_end_token_nothing_is_at_an_end():
    assert not Tokens([]).write(ended=False).at_end
    assert not Tokens([b" "]).write(ended=False).at_end


def test_a_token_across_two_words_keeps_them_together():
    writer = Tokens([b"on", b"e tw", b"o", b" three", b"."]).write()
    assert words(writer) == ["one two", " three."]


def test_a_token_with_the_blank_of_the_next_word_is_kept_whole():
    writer = Tokens([b"one ", b"two ", b"three"]).write()
    assert words(writer) == ["one two three"]


def test_blanks_after_the_last_word_are_no_word():
    writer = Tokens([b"one", b" ", b" "]).write()
    assert words(writer) == ["one"]
    assert writer.at_end
    assert not writer.text(1).endswith(" ")


def test_blanks_in_the_last_token_stay_with_the_last_word():
    writer = Tokens([b"one", b" two  "]).write()
    assert words(writer) == ["one", " two  "]
    assert writer.at_end


def test_start_tokens_are_skipped():
    tokens = Tokens([b"one", b" two", b" three", b" four"])
    writer = tokens.write(skip=2)
    assert writer.word_starts == [2, 3, 4]
    assert writer.text(2) == "one two"


def test_end_tokens_are_not_written():
    writer = Tokens([b"one"]).write()
    assert writer.ids == [0]
    assert writer.ended


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=10), st.integers(1, 6))
@many
def test_any_bytes_at_all_are_written_without_loss(pieces, cap):
    tokens = Tokens(pieces)
    assume(pieces)
    writer = tokens.write(cap=cap)
    assert writer.word_starts == sorted(set(writer.word_starts))
    assert writer.ids == list(range(len(pieces)))
    assert writer.text(len(pieces)) == tokens.decode(range(len(pieces)))
