"""Words of a continuation: they end at token boundaries, never inside a word or a character."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from adafuse_core.members.word_tracker import WordTracker
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
    """A vocabulary for one continuation: the bytes of each token, by id."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, ids):
        return b"".join(self.pieces[index] for index in ids if index >= 0).decode(errors="replace")

    def tracker(self, cap=24, start=()):
        return WordTracker(self.decode, RULE, frozenset({END}), cap, start)

    def track(self, *, ended=True, cap=24, skip=0):
        tracker = self.tracker(cap, tuple(range(skip)))
        for index in range(skip, len(self.pieces)):
            tracker.push(index)
        if ended:
            tracker.push(END)
        return tracker


def cut(data, text):
    """The bytes of a text, split anywhere, also inside characters."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=len(raw))))
    return Tokens([raw[a:b] for a, b in itertools.pairwise([0, *(c for c in cuts if c < len(raw)), len(raw)]) if a < b])


texts = st.sampled_from(TEXTS) | st.text("ab .\n日本é😀", max_size=12)


def words(tracker):
    return [tracker.text(b)[len(tracker.text(a)) :] for a, b in itertools.pairwise(tracker.word_starts)]


@given(texts, st.data())
@many
def test_words_are_whole_words_at_token_boundaries(text, data):
    tracker = cut(data, text).track()
    rest = text
    for word in words(tracker):
        assert word in [rest[:end] for end in [*RULE.ends(rest, final=True), len(rest)]]
        rest = rest[len(word) :]
    assert is_blank(rest)
    assert tracker.at_end
    assert tracker.text(len(tracker.ids)) == text


@given(texts, st.data())
@many
def test_one_character_per_token_gives_exactly_the_words_of_the_rule(text, data):
    tracker = Tokens([character.encode() for character in text]).track()
    expected, rest = [], text
    while ends := RULE.ends(rest, final=True):
        expected.append(rest[: ends[0]])
        rest = rest[ends[0] :]
    assert words(tracker) == expected


def test_an_incomplete_character_does_not_complete_the_word_before_it():
    stop = "。".encode()
    tracker = Tokens(["日本".encode(), stop[:1], stop[1:], b"x"])
    assert words(tracker.track()) == ["日本。", "x"]
    accent = "\u3099".encode()
    assert words(Tokens(["日か".encode(), accent[:2], accent[2:], b"x"]).track()) == ["日か\u3099", "x"]


@given(texts, st.data())
@many
def test_word_starts_never_change(text, data):
    tokens = cut(data, text)
    tracker, found = tokens.tracker(), [0]
    for index in range(len(tokens.pieces)):
        tracker.push(index)
        assert tracker.word_starts[: len(found)] == found
        found = list(tracker.word_starts)
    tracker.push(END)
    assert tracker.word_starts[: len(found)] == found


@given(texts, st.data())
@many
def test_an_unfinished_continuation_has_no_word_that_could_still_grow(text, data):
    tokens = cut(data, text)
    going, done = tokens.track(ended=False), tokens.track()
    assert done.word_starts[: len(going.word_starts)] == going.word_starts
    assert going.word_starts[-1] < len(tokens.pieces) or not text


@given(texts, st.data())
@many
def test_words_after_committed_words_are_those_of_one_run(text, data):
    """The number of words per round makes no difference."""
    tokens = cut(data, text)
    starts = tokens.track().word_starts
    for skip, following in itertools.pairwise(starts):
        before = tokens.decode(range(skip))
        later = WordTracker(
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
def test_no_word_has_more_tokens_than_the_cap_except_to_complete_a_character(text, cap, data):
    bytewise = data.draw(st.booleans())
    tracker = (Tokens([bytes([byte]) for byte in text.encode()]) if bytewise else cut(data, text)).track(cap=cap)
    for start, end in itertools.pairwise(tracker.word_starts):
        assert end - start <= cap + 3
        assert not bytewise or not tracker.text(end).endswith("\ufffd")
    if bytewise:
        assert "".join(words(tracker)) + text[len(tracker.text(tracker.word_starts[-1])) :] == text


def test_a_word_that_is_too_long_is_cut_at_the_cap():
    tracker = Tokens([b"a"] * 10).track(ended=False, cap=4)
    assert tracker.word_starts == [0, 4, 8]


def test_a_cap_inside_a_character_cuts_after_the_character():
    tracker = Tokens([b"a", *[bytes([byte]) for byte in "😀".encode()], b"b"]).track(ended=False, cap=2)
    assert words(tracker)[0] == "a😀"


def test_invalid_bytes_are_cut_at_the_cap_too():
    assert Tokens([b"\xff"] * 12).track(ended=False, cap=2).words > 0


def test_tokens_without_text_are_no_word():
    tokens = Tokens([b"a", b" b"])
    tracker = tokens.tracker(cap=3)
    for token in [CONTROL] * 7:
        tracker.push(token)
    assert tracker.words == 0
    assert not tracker.at_end
    tracker.push(END)
    assert tracker.at_end


def test_control_tokens_belong_to_the_word_that_follows():
    tokens = Tokens([b"one", b" two"])
    tracker = tokens.tracker()
    for token in (0, CONTROL, 1, END):
        tracker.push(token)
    assert words(tracker) == ["one", " two"]
    assert tracker.ids == [0, CONTROL, 1]


@pytest.mark.parametrize("pieces", [[], [b" "], [b"\n", b" "]])
def test_an_end_token_after_only_whitespace_is_an_end(pieces):
    tracker = Tokens(pieces).track()
    assert tracker.words == 0
    assert tracker.at_end


def test_without_an_end_token_there_is_no_end():
    assert not Tokens([]).track(ended=False).at_end
    assert not Tokens([b" "]).track(ended=False).at_end


def test_two_words_in_one_token_are_not_split():
    tracker = Tokens([b"on", b"e tw", b"o", b" three", b"."]).track()
    assert words(tracker) == ["one two", " three."]


def test_a_token_with_the_space_of_the_next_word_is_not_split():
    tracker = Tokens([b"one ", b"two ", b"three"]).track()
    assert words(tracker) == ["one two three"]


def test_whitespace_after_the_last_word_is_no_word():
    tracker = Tokens([b"one", b" ", b" "]).track()
    assert words(tracker) == ["one"]
    assert tracker.at_end
    assert not tracker.text(1).endswith(" ")


def test_whitespace_in_the_last_token_belongs_to_the_last_word():
    tracker = Tokens([b"one", b" two  "]).track()
    assert words(tracker) == ["one", " two  "]
    assert tracker.at_end


def test_start_tokens_are_skipped():
    tokens = Tokens([b"one", b" two", b" three", b" four"])
    tracker = tokens.track(skip=2)
    assert tracker.word_starts == [2, 3, 4]
    assert tracker.text(2) == "one two"


def test_end_tokens_are_not_in_ids():
    tracker = Tokens([b"one"]).track()
    assert tracker.ids == [0]
    assert tracker.ended


@given(st.lists(st.binary(min_size=1, max_size=3), max_size=10), st.integers(1, 6))
@many
def test_any_bytes_are_tracked_without_loss(pieces, cap):
    tokens = Tokens(pieces)
    assume(pieces)
    tracker = tokens.track(cap=cap)
    assert tracker.word_starts == sorted(set(tracker.word_starts))
    assert tracker.ids == list(range(len(pieces)))
    assert tracker.text(len(pieces)) == tokens.decode(range(len(pieces)))
