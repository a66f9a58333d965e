"""The pool, the fused scores and the choice."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_core.fusion import Chooser, fuse, pool
from adafuse_core.rounds import Draft, Span

many = settings(deadline=None, max_examples=200)
spans = st.builds(Span, text=st.sampled_from(["", " a", " b", "a", " a\n", "é", "e\u0301"]), ends=st.booleans())
drafts = st.lists(st.lists(spans, min_size=1, max_size=4), min_size=1, max_size=4).map(
    lambda rows: [draft(str(index), *row) for index, row in enumerate(rows)]
)
scores = st.lists(st.floats(0, 50), min_size=1, max_size=6)


def draft(member, *proposed):
    return Draft(member=member, spans=proposed, margins=(0.5,))


@given(drafts)
@many
def test_the_pool_holds_every_span_once_in_order_of_member_then_branch(proposed):
    expected = list(dict.fromkeys(span for each in proposed for span in each.spans))
    assert [candidate.span for candidate in pool(proposed)] == expected


@given(drafts)
@many
def test_every_candidate_names_its_proposers_once_in_member_order(proposed):
    for candidate in pool(proposed):
        assert list(candidate.proposers) == [each.member for each in proposed if candidate.span in each.spans]


def test_ending_and_going_on_are_different_candidates():
    going, ending = Span(text=" a"), Span(text=" a", ends=True)
    assert [candidate.span for candidate in pool([draft("x", going), draft("y", ending)])] == [going, ending]


def test_texts_are_different_where_their_bytes_are():
    texts = [" a", "a", " a ", " a\n", " A", "é", "e\u0301"]
    assert len(pool([draft("x", *[Span(text=text) for text in texts])])) == len(texts)


def test_an_end_without_text_is_a_candidate():
    assert pool([draft("x", Span(text="", ends=True))])[0].span.text == ""


def test_fused_scores_are_the_mean_over_members():
    assert fuse([[1.0, 3.0], [4.0, 0.0]], [1, 1]) == (2.0, 2.0)


def test_fused_scores_follow_the_weights():
    assert fuse([[1.0, 3.0]], [3, 1]) == (1.5,)


@given(st.lists(st.lists(st.floats(0, 50), min_size=3, max_size=3), min_size=1), st.floats(0.01, 100))
@many
def test_only_the_proportion_of_the_weights_counts(rows, factor):
    weights = [1.0, 2.0, 0.5]
    scaled = fuse(rows, [weight * factor for weight in weights])
    assert scaled == pytest.approx(fuse(rows, weights))


@given(st.lists(st.floats(0, 50), min_size=1, max_size=5), st.floats(0.01, 100))
@many
def test_a_fused_score_lies_between_those_of_the_members(row, weight):
    (fused,) = fuse([row], [weight] * len(row))
    assert min(row) - 1e-9 <= fused <= max(row) + 1e-9


@given(st.lists(st.floats(0, 50), min_size=4, max_size=4), st.permutations(range(4)))
@many
def test_the_order_of_members_does_not_change_a_fused_score(row, order):
    assert fuse([[row[index] for index in order]], [1.0] * 4) == fuse([row], [1.0] * 4)


def test_members_without_a_weight_are_our_mistake():
    with pytest.raises(ValueError):
        fuse([[1.0, 2.0]], [1.0])


@given(scores)
@many
def test_the_lowest_score_wins_and_ties_go_to_the_earlier_candidate(fused):
    assert Chooser().choose(fused) == fused.index(min(fused))


@given(scores, st.floats(0.05, 20), st.integers(0, 9))
@many
def test_draws_are_repeatable_by_seed(fused, temperature, seed):
    first, second = Chooser(temperature, seed), Chooser(temperature, seed)
    assert [first.choose(fused) for _ in range(5)] == [second.choose(fused) for _ in range(5)]


def test_draws_without_a_seed_differ():
    runs = {tuple(chooser.choose([1.0, 1.0]) for _ in range(64)) for chooser in (Chooser(1.0) for _ in range(4))}
    assert len(runs) > 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_draws_follow_the_softmax_of_negative_scores(temperature):
    fused, draws = [0.5, 1.0, 2.5, 1.0], 20_000
    chooser = Chooser(temperature, seed=7)
    counts = Counter(chooser.choose(fused) for _ in range(draws))
    powers = [math.exp(-score / temperature) for score in fused]
    for index, power in enumerate(powers):
        probability = power / sum(powers)
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[index] - draws * probability) < 4 * spread + 1


@pytest.mark.parametrize("temperature", [1e-9, 5e-324, 1e300])
@pytest.mark.parametrize("fused", [[700.0, 0.0, 900.0], [3.0, 3.0], [1e6, 1e6 + 1]])
def test_extreme_temperatures_and_scores_still_draw(temperature, fused):
    chosen = {Chooser(temperature, seed).choose(fused) for seed in range(20)}
    assert chosen <= set(range(len(fused)))
    if temperature < 1:
        assert all(fused[index] == min(fused) for index in chosen)
