"""Stop strings are found across spans; the text is cut at the first complete match and never shows a part of it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adafuse_core.stopping import StopMatcher

# Two letters make matches, overlaps and incomplete matches frequent.
pieces = st.lists(st.text("ab ", max_size=4), min_size=1, max_size=8)
stops = st.lists(st.text("ab ", min_size=1, max_size=5), max_size=4, unique=True).map(tuple)
many = settings(deadline=None, max_examples=400)


def run(parts, stop, *, ends=True):
    """The text shown after each part, including held-back text at the end, and the matcher."""
    matcher = StopMatcher(stop)
    shown = []
    for part in parts:
        shown.append(matcher.feed(part))
        if matcher.hit is not None:
            return shown, matcher
    if ends:
        shown[-1] += matcher.rest()
    return shown, matcher


def first_complete(text, stop):
    """Position and string of the first complete match from left to right; the longest of several."""
    for end in range(1, len(text) + 1):
        hits = [string for string in stop if text[:end].endswith(string)]
        if hits:
            longest = max(hits, key=len)
            return end - len(longest), longest
    return None


@given(pieces, stops)
@example(["abc", "de"], ("bc", "abcd"))
@example(["ab", "c"], ("abc", "b"))
@many
def test_shown_text_is_the_text_before_the_first_complete_stop(parts, stop):
    text = "".join(parts)
    shown, matcher = run(parts, stop)
    hit = first_complete(text, stop)
    if hit is None:
        assert "".join(shown) == text
        assert matcher.hit is None
    else:
        assert "".join(shown) == text[: hit[0]]
        assert matcher.hit == hit[1]


@given(st.text("ab ", max_size=14), stops, st.data())
@example("abcd", ("bc", "abcd"), None)
@many
def test_borders_of_spans_do_not_change_the_answer(text, stop, data):
    cuts = [2] if data is None else sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, matcher = run([text], stop)
    split, other = run(parts, stop)
    assert "".join(split) == "".join(whole)
    assert other.hit == matcher.hit


@given(pieces, stops, st.text("ab ", max_size=6))
@many
def test_shown_text_contains_no_part_of_a_stop_string(parts, stop, rest):
    shown, matcher = run(parts, stop, ends=False)
    seen = "".join(shown)
    assert not any(string in seen for string in stop)
    if matcher.hit is None:
        matcher.feed(rest)
        hit = first_complete("".join(parts) + rest, stop)
        assert hit is None or len(seen) <= hit[0]


@given(pieces, stops)
@many
def test_no_more_is_held_back_than_could_begin_a_stop(parts, stop):
    shown, matcher = run(parts, stop, ends=False)
    if matcher.hit is None:
        text = "".join(parts)
        held = text[len("".join(shown)) :]
        assert held == "" or any(string.startswith(held) for string in stop)
        assert text.endswith(held)


def test_without_stops_everything_is_shown_at_once():
    matcher = StopMatcher()
    assert matcher.feed(" one") == " one"
    assert matcher.feed(" two") == " two"
    assert (matcher.rest(), matcher.hit) == ("", None)


def test_stop_string_split_across_three_spans():
    shown, matcher = run(["one\n", "Observ", "ation:", " x"], ("\nObservation:",))
    assert shown == ["one", "", ""]
    assert matcher.hit == "\nObservation:"


def test_an_incomplete_stop_string_is_shown_with_the_next_text():
    shown, matcher = run(["one\n", "Obser", "ving"], ("\nObservation:",))
    assert shown == ["one", "", "\nObserving"]
    assert matcher.hit is None


def test_an_incomplete_stop_string_may_contain_the_start_of_another():
    shown, matcher = run(["aab", "aabc"], ("aabc",))
    assert "".join(shown) == "aab"
    assert matcher.hit == "aabc"


def test_a_stop_at_the_very_start_leaves_nothing():
    shown, matcher = run(["\n", "\n"], ("\n\n",))
    assert shown == ["", ""]
    assert matcher.hit == "\n\n"


def test_of_stops_complete_at_one_place_the_longest_is_hit():
    shown, matcher = run(["x END."], ("END.", "."))
    assert "".join(shown) == "x "
    assert matcher.hit == "END."


@pytest.mark.parametrize("parts", [["abcd"], ["abc", "d"], ["a", "b", "c", "d"]])
def test_of_overlapping_stops_the_first_to_be_complete_is_hit(parts):
    shown, matcher = run(parts, ("abcd", "bc"))
    assert "".join(shown) == "a"
    assert matcher.hit == "bc"


def test_held_back_text_is_shown_once():
    matcher = StopMatcher(("two three",))
    assert matcher.feed("one two") == "one "
    assert matcher.rest() == "two"
    assert matcher.rest() == ""
    assert matcher.hit is None


def test_stops_are_compared_to_the_byte():
    shown, matcher = run(["e\u0301 é", " x"], ("é\u0301",))
    assert "".join(shown) == "e\u0301 é x"
    assert matcher.hit is None
