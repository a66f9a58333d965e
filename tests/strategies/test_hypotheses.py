"""Hypotheses of the search: what is the same answer, and how likely it is."""

from __future__ import annotations

import math

import pytest

from adafuse_core.rounds import Draft, Score, Span
from adafuse_core.strategies.hypotheses import Hypothesis, Word, any_of, without_doubles
from adafuse_core.text.stop_strings import first_stop


def score(*chances):
    logprobs = tuple(map(math.log, chances))
    return Score(member="m", logprobs=logprobs, words=1, bytes=len(logprobs), word_ends=(len(logprobs),))


def test_the_chance_of_several_texts_is_the_sum_of_their_chances():
    merged = any_of([score(0.5, 0.2), score(0.5, 0.6)])
    assert [math.exp(each) for each in merged.logprobs] == pytest.approx([0.5, 0.8])
    assert any_of([score(0.5, 0.2)]) == score(0.5, 0.2)


def test_a_text_that_begins_with_another_one_is_part_of_the_same_event():
    assert any_of([score(0.5, 0.2), score(0.5, 0.2, 0.9)]) == score(0.5, 0.2)


def test_a_text_with_more_words_does_not_count():
    longer = Score(member="m", logprobs=(math.log(0.9),), words=2, bytes=2, word_ends=(1, 1))
    assert any_of([score(0.5), longer]) == score(0.5)
    assert any_of([longer, score(0.5)]) == longer


def test_texts_that_are_impossible_stay_so():
    never = Score(member="m", logprobs=(-math.inf,), words=1, bytes=1, word_ends=(1,))
    assert any_of([never, never]) == never
    assert any_of([never, score(0.3)]) == score(0.3)


def hypothesis(text, *proposers, body=None, ends=False):
    drafts = tuple(Draft(member=name, spans=(Span(text=text),), margins=(0.5,)) for name in "abc")
    return Hypothesis(text=text, body=body, ends=ends, words=(Word(end=len(text), proposers=proposers, drafts=drafts),))


def test_answers_that_differ_after_a_stop_string_are_one_answer():
    one, two = hypothesis(" x\n", "b", body=" x"), hypothesis(" x\n\n", "a", body=" x")
    (found,) = without_doubles([one, two])
    assert found.text == " x\n"
    assert found.words[-1].proposers == ("a", "b")
    assert len(without_doubles([one, hypothesis(" x", "a")])) == 2  # this one goes on
    assert len(without_doubles([hypothesis(" x", "a"), hypothesis(" x", "a", ends=True)])) == 2


def test_a_tail_must_continue_what_is_committed():
    found = hypothesis(" x\n\n", "a", body=" x")
    assert (found.tail, found.with_tail("\n", " ")) == ("\n\n", Span(text="x\n"))
    assert found.with_tail("!", " x\n") is None  # "\n" is committed


@pytest.mark.parametrize(
    ("before", "text", "stop", "start"),
    [
        ("", "ab", ["b"], 1),
        ("a", "bc", ["ab"], 0),  # it begins in the text before
        ("ab", "c", ["ab"], None),  # it was complete before
        ("", "abc", ["bc", "abc"], 0),  # both end at the same place: the longest
        ("", "abc", ["c", "a"], 0),  # the first one to end
        ("x", "y", [], None),
    ],
)
def test_the_first_stop_string(before, text, stop, start):
    assert first_stop(before, text, stop) == start
