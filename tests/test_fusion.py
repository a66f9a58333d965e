"""The pool, the fused scores and the choice."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_core.chooser import Anchor, Chooser, pooled
from adafuse_core.errors import ConfigError
from adafuse_core.fusion import POOLS, SCORING, Fusion
from adafuse_core.rounds import Draft, Score, Span
from adafuse_core.strategies.base import weighted_by_prompt

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
    assert [candidate.span for candidate in pooled(proposed)] == expected


@given(drafts)
@many
def test_every_candidate_names_its_proposers_once_in_member_order(proposed):
    for candidate in pooled(proposed):
        assert list(candidate.proposers) == [each.member for each in proposed if candidate.span in each.spans]


def test_equal_texts_with_and_without_end_are_different_candidates():
    going, ending = Span(text=" a"), Span(text=" a", ends=True)
    assert [candidate.span for candidate in pooled([draft("x", going), draft("y", ending)])] == [going, ending]


def test_texts_are_different_where_their_bytes_are():
    texts = [" a", "a", " a ", " a\n", " A", "é", "e\u0301"]
    assert len(pooled([draft("x", *[Span(text=text) for text in texts])])) == len(texts)


def test_an_end_without_text_is_a_candidate():
    assert pooled([draft("x", Span(text="", ends=True))])[0].span.text == ""


def score(*logprobs, words=1, length=1):
    return Score(member="m", logprobs=logprobs, words=words, bytes=length, word_ends=(min(2, len(logprobs)),))


def test_scoring_divides_by_its_unit():
    given = score(-1.0, -2.0, -3.0, words=2, length=12)
    assert {name: rule(given) for name, rule in SCORING.items()} == {
        "token": 2.0,
        "word": 3.0,
        "sqrt_word": 6.0 / math.sqrt(2),
        "byte": 0.5,
        "first_word": 3.0,
        "sum": 6.0,
    }


@pytest.mark.parametrize("rule", SCORING)
def test_an_empty_span_scores_nothing(rule):
    assert SCORING[rule](score(words=0, length=0)) == 0.0


def fuse(pool, row, weights=None, **options):
    return Fusion(scoring="token", pool=pool, **options).average(row, weights or [1.0] * len(row))


def test_geometric_is_the_weighted_mean_of_nlls():
    assert fuse("geometric", [1.0, 3.0]) == 2.0
    assert fuse("geometric", [1.0, 3.0], [3, 1]) == 1.5


def test_linear_is_the_nll_of_the_weighted_mean_of_probabilities():
    assert fuse("linear", [0.5, 2.0], [3, 1]) == pytest.approx(-math.log((3 * math.exp(-0.5) + math.exp(-2.0)) / 4))


def test_power_is_the_nll_of_the_power_mean_of_probabilities():
    mean = ((math.exp(-0.5) ** 0.3 + math.exp(-2.0) ** 0.3) / 2) ** (1 / 0.3)
    assert fuse("power", [0.5, 2.0], pool_exponent=0.3) == pytest.approx(-math.log(mean))


def test_the_exponent_of_a_power_mean_is_a_half_by_default():
    assert fuse("power", [0.5, 2.0], [3, 1]) == fuse("power", [0.5, 2.0], [3, 1], pool_exponent=0.5)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=5))
@many
def test_power_lies_between_geometric_and_the_surest_member(row):
    values = [fuse("geometric", row), *(fuse("power", row, pool_exponent=p) for p in (1e-6, 0.5, 1.0, 4.0, 1e6))]
    assert values[1] == pytest.approx(values[0], abs=1e-2)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(values[1:]))
    assert values[-1] == pytest.approx(min(row), abs=1e-4)


@pytest.mark.parametrize(
    ("row", "weights", "expected"),
    [
        ([3.0], [1], 3.0),
        ([3.0, 1.0], [1, 1], 2.0),
        ([3.0, 1.0, 9.0], [1, 1, 1], 3.0),
        ([3.0, 1.0, 9.0], [1, 1, 2.5], 9.0),
        ([4.0, 1.0, 9.0], [1, 1, 2], 6.5),
        ([5.0, 5.0, 1.0, 1.0], [1, 1, 1, 1], 3.0),
    ],
)
def test_median_is_weighted(row, weights, expected):
    assert fuse("median", row, weights) == expected


@pytest.mark.parametrize("pool", POOLS)
@given(row=st.lists(st.floats(0, 50), min_size=3, max_size=3), factor=st.floats(0.01, 100))
@many
def test_only_the_proportion_of_the_weights_counts(pool, row, factor):
    weights = [1.0, 2.0, 0.5]
    options = {"pool_exponent": 0.5} if pool == "power" else {}
    scaled = fuse(pool, row, [weight * factor for weight in weights], **options)
    assert scaled == pytest.approx(fuse(pool, row, weights, **options))


@pytest.mark.parametrize("pool", POOLS)
@given(row=st.lists(st.floats(0, 50), min_size=1, max_size=5), weight=st.floats(0.01, 100))
@many
def test_a_fused_value_lies_between_those_of_the_members(pool, row, weight):
    fused = fuse(pool, row, [weight] * len(row), **({"pool_exponent": 2.0} if pool == "power" else {}))
    assert min(row) - 1e-9 <= fused <= max(row) + 1e-9


@pytest.mark.parametrize("pool", POOLS)
@given(row=st.lists(st.floats(0, 50), min_size=4, max_size=4), order=st.permutations(range(4)))
@many
def test_the_order_of_members_does_not_change_a_fused_value(pool, row, order):
    options = {"pool_exponent": 0.5} if pool == "power" else {}
    turned = fuse(pool, [row[index] for index in order], **options)
    assert turned == pytest.approx(fuse(pool, row, **options), abs=1e-12)


@pytest.mark.parametrize("pool", [pool for pool in POOLS if pool != "max"])
def test_zero_weights_are_an_internal_error(pool):
    with pytest.raises(ValueError):
        fuse(pool, [1.0, 2.0], [1.0], **({"pool_exponent": 1.0} if pool == "power" else {}))


def test_an_impossible_candidate_is_worst_in_every_pool():
    assert fuse("linear", [math.inf, math.inf]) == math.inf
    assert fuse("linear", [0.0, math.inf]) == pytest.approx(math.log(2))
    assert fuse("geometric", [0.0, math.inf]) == math.inf


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": "bytes", "pool": "geometric"},
        {"scoring": "token", "pool": "mean"},
        {"scoring": "token", "pool": "power", "pool_exponent": -0.5},
        {"scoring": "token", "pool": "linear", "pool_exponent": 1.0},
    ],
)
def test_invalid_fusion_options_are_refused(options):
    with pytest.raises(ConfigError):
        Fusion(**options)


def test_a_round_keeps_scores_values_and_fused_values():
    fusion = Fusion(scoring="word", pool="geometric")
    proposed = [draft("a", Span(text=" x"), Span(text=" y z"))]
    scores = [[score(-1.0), score(-3.0)], [score(-1.0, -1.0, words=2), score(-2.0, -2.0, words=2)]]
    played = Chooser(fusion, [3.0, 1.0]).decide(proposed, pooled(proposed), scores)
    assert played.values == ((1.0, 3.0), (1.0, 2.0))
    assert played.fused == (1.5, 1.25)
    assert played.winner.span == Span(text=" y z")
    assert played.span_scores == tuple(scores[1])


def anchored(margin, temperature=0.0):
    """The text chosen from the anchor's " a" (value 2.0) and its branch " c" (1.0), and " b" (1.5)."""
    proposed = [draft("m", Span(text=" a"), Span(text=" c")), draft("n", Span(text=" b"))]
    chooser = Chooser(Fusion(), [1.0, 1.0], temperature, 0, anchor=Anchor(member="m", margin=margin))
    scores = [[score(-value)] * 2 for value in (2.0, 1.0, 1.5)]
    return chooser.decide(proposed, pooled(proposed), scores).winner.span.text


def test_the_likeliest_word_of_the_anchor_stands_up_to_the_margin():
    assert [anchored(margin) for margin in (0.0, 0.9, 1.0, 5.0, math.inf)] == [" c", " c", " a", " a", " a"]
    assert anchored(math.inf, temperature=3.0) == " a"


def test_a_member_whose_favourites_are_chosen_gains_weight():
    chooser = Chooser(Fusion(), [1.0, 2.0], weighting="agreement")
    proposed = [draft("m", Span(text=" a")), draft("n", Span(text=" b"))]
    rows = [[score(-1.0), score(-1.2)], [score(-2.0), score(-1.0)]]  # the first member decides by its larger lead
    assert chooser.weights == [0.5, 1.0]
    assert chooser.decide(proposed, pooled(proposed), rows).winner.span.text == " a"  # 1.13 against 1.33
    assert chooser.weights == [2 / 3, 2 / 3]


def test_a_member_that_finds_the_chosen_texts_surprising_loses_weight():
    chooser = Chooser(Fusion(), [1.0, 2.0, 1.0], weighting="nll")
    proposed = [draft("m", Span(text=" a")), draft("n", Span(text=" b"))]
    rows = [[score(-1.0), score(-3.0), score(-0.0)], [score(-9.0), score(-9.0), score(-9.0)]]
    assert chooser.weights == [1.0, 2.0, 1.0]
    chooser.decide(proposed, pooled(proposed), rows)
    assert chooser.weights == pytest.approx([2 / 2, 2 * 2 / 4, 2 / 1])
    never = [score(-math.inf), score(-1.0), score(-1.0)]
    chooser.decide(proposed, pooled(proposed), [never, never])
    assert chooser.weights == pytest.approx([3 / 52, 2 * 3 / 5, 3 / 2])


def test_weights_by_prompt_are_inverse_perplexities_per_word():
    prompts = [score(-1.0, -2.0, length=6), score(-0.5, -0.5, -0.5, length=3), score(-3.0, length=6)]
    assert weighted_by_prompt([1.0, 1.0, 2.0], prompts) == pytest.approx([1.0, 1.0, 2.0])
    prompts = [score(-1.0, length=6), score(-1.0, length=3)]
    assert weighted_by_prompt([1.0, 3.0], prompts) == pytest.approx([1.0, 3 / math.e])


def test_equal_spans_with_different_continuations_are_different_candidates():
    short, long = Span(text=" a b"), Span(text=" a c")
    drafts = [
        Draft(member=name, spans=(Span(text=" a"),), margins=(), ahead=(ahead,))
        for name, ahead in (("m", short), ("n", long), ("o", short))
    ]
    assert [(each.ahead, each.proposers) for each in pooled(drafts)] == [(short, ("m", "o")), (long, ("n",))]


def chooser(temperature=0.0, seed=None):
    return Chooser(Fusion(scoring="token", pool="geometric"), [1.0], temperature, seed)


@given(scores)
@many
def test_the_lowest_score_wins_and_ties_go_to_the_earlier_candidate(fused):
    assert chooser().choose(fused) == fused.index(min(fused))


@given(scores, st.floats(0.05, 20), st.integers(0, 9))
@many
def test_samples_are_repeatable_by_seed(fused, temperature, seed):
    first, second = chooser(temperature, seed), chooser(temperature, seed)
    assert [first.choose(fused) for _ in range(5)] == [second.choose(fused) for _ in range(5)]


def test_samples_without_a_seed_differ():
    runs = {tuple(each.choose([1.0, 1.0]) for _ in range(64)) for each in [chooser(1.0) for _ in range(4)]}
    assert len(runs) > 1


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_samples_follow_the_softmax_of_negative_scores(temperature):
    fused, draws = [0.5, 1.0, 2.5, 1.0], 20_000
    drawing = chooser(temperature, seed=7)
    counts = Counter(drawing.choose(fused) for _ in range(draws))
    powers = [math.exp(-score / temperature) for score in fused]
    for index, power in enumerate(powers):
        probability = power / sum(powers)
        spread = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[index] - draws * probability) < 4 * spread + 1


@pytest.mark.parametrize("temperature", [1e-9, 5e-324, 1e300])
@pytest.mark.parametrize("fused", [[700.0, 0.0, 900.0], [3.0, 3.0], [1e6, 1e6 + 1]])
def test_extreme_temperatures_and_scores_can_be_sampled(temperature, fused):
    chosen = {chooser(temperature, seed).choose(fused) for seed in range(20)}
    assert chosen <= set(range(len(fused)))
    if temperature < 1:
        assert all(fused[index] == min(fused) for index in chosen)


def of_words(*nlls):
    """A score with one token for each word."""
    ends = tuple(range(1, len(nlls) + 1))
    return Score(member="m", logprobs=tuple(-nll for nll in nlls), words=len(nlls), bytes=9 * len(nlls), word_ends=ends)


def test_words_are_averaged_over_the_members_and_then_added_up():
    one, two = of_words(0.1, 4.0), of_words(3.0, 0.2)
    words = [-2 * math.log((math.exp(-a / 2) + 2 * math.exp(-b / 2)) / 3) for a, b in ((0.1, 3.0), (4.0, 0.2))]
    expected = {"sum": sum(words), "word": sum(words) / 2, "sqrt_word": sum(words) / 2**0.5, "first_word": words[0]}
    for scoring, value in expected.items():
        fusion = Fusion(scoring=scoring, pool="power", pool_exponent=0.5, pool_over="word")
        assert fusion.fuse([one, two], [1.0, 2.0]) == pytest.approx(value)


def test_words_of_different_members_beat_a_word_that_both_find_possible():
    known = of_words(0.01, 6.0), of_words(6.0, 0.01)  # each word is certain to one member
    vague = of_words(2.5, 2.5), of_words(2.5, 2.5)
    fusions = [Fusion(scoring="sum", pool="power", pool_exponent=0.5, pool_over=over) for over in ("word", "span")]
    better = [fusion.fuse(known, [1, 1]) < fusion.fuse(vague, [1, 1]) for fusion in fusions]
    assert better == [True, False]


def test_the_geometric_mean_is_the_same_over_words_and_spans():
    scores = of_words(0.1, 4.0, 2.0), of_words(3.0, 0.2, 1.0)
    fusions = [Fusion(scoring="word", pool="geometric", pool_over=over) for over in ("word", "span")]
    assert fusions[0].fuse(scores, [1, 3]) == pytest.approx(fusions[1].fuse(scores, [1, 3]))


@pytest.mark.parametrize("scoring", ["token", "byte"])
def test_units_that_are_not_words_are_refused_where_words_are_averaged(scoring):
    with pytest.raises(ConfigError, match=f"pool_over='word' has no meaning with scoring='{scoring}'"):
        Fusion(scoring=scoring, pool_over="word")
