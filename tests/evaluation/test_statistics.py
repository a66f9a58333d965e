"""Intervals and tests beside values that were computed by hand or printed in the literature."""

from __future__ import annotations

import itertools

import pytest

from adafuse_core.evaluation.statistics import (
    Estimate,
    binomial_tail,
    bootstrap,
    clopper_pearson,
    mcnemar,
    mean,
    paired_bootstrap,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_equal_published_ones(successes, trials, low, high):
    found = wilson(successes, trials)
    assert found.value == successes / trials
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2527, 0.3676),  # Newcombe 1998, table I, method 5
        (15, 148, 0.0578, 0.1617),
        (0, 20, 0.0, 0.1684),
        (1, 29, 0.0009, 0.1776),
    ],
)
def test_exact_intervals_equal_published_ones(successes, trials, low, high):
    found = clopper_pearson(successes, trials)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_the_exact_bound_without_failures_is_the_rule_of_three():
    assert clopper_pearson(300, 300, confidence=0.9).low == pytest.approx(0.05 ** (1 / 300), abs=1e-12)


def test_exact_bounds_leave_the_tails_outside():
    found = clopper_pearson(7, 20)
    assert binomial_tail(7, 20, found.high) == pytest.approx(0.025, abs=1e-9)
    assert 1 - binomial_tail(6, 20, found.low) == pytest.approx(0.025, abs=1e-9)


def test_binomial_tails_of_many_trials():
    assert binomial_tail(5000, 10_000, 0.5) == pytest.approx(0.5 + 0.00797864 / 2, abs=1e-6)


@pytest.mark.parametrize(("wins", "losses", "p"), [(9, 2, 134 / 2048), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_equals_sums_of_binomial_coefficients(wins, losses, p):
    assert mcnemar(wins, losses) == pytest.approx(p, abs=1e-12)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_bootstrap_of_a_mean_of_three_values_has_the_quantiles_of_all_resamples():
    values = [0.0, 1.0, 5.0]
    every = sorted(sum(drawn) / 3 for drawn in itertools.product(values, repeat=3))  # 27 equally likely means
    found = mean(values, resamples=50_000, confidence=0.6)
    assert found.value == 2.0
    # The 20% and 80% quantiles of the 27 means lie inside runs of equal means.
    assert (found.low, found.high) == (pytest.approx(every[5]), pytest.approx(every[21]))


def test_paired_differences_resample_questions_not_systems():
    ours, theirs = [100.0, 0.0, 50.0, 100.0], [90.0, -10.0, 40.0, 90.0]
    found = paired_difference(ours, theirs)
    assert (found.value, found.low, found.high) == (pytest.approx(10.0), pytest.approx(10.0), pytest.approx(10.0))


def test_paired_intervals_agree_with_the_normal_formula_for_many_questions():
    ours = [float(place % 3 == 0) for place in range(600)]
    theirs = [float(place % 4 == 0) for place in range(600)]
    found = paired_difference(ours, theirs)
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    center = sum(differences) / 600
    error = (sum((difference - center) ** 2 for difference in differences) / 599 / 600) ** 0.5
    assert found.value == pytest.approx(1 / 3 - 1 / 4)
    assert found.half_width == pytest.approx(1.96 * error, rel=0.05)


def test_scores_of_a_whole_set_are_computed_from_summed_statistics():
    rows = [(1, 2), (3, 4)]
    found = bootstrap(rows, lambda sums: sums[0] / sums[1])
    assert found.value == pytest.approx(4 / 6)
    assert (found.low, found.high) == (pytest.approx(1 / 2), pytest.approx(3 / 4))
    other = paired_bootstrap(rows, [(0, 2), (0, 4)], lambda sums: sums[0] / sums[1])
    assert other == found


def test_the_same_seed_gives_the_same_interval_also_in_chunks(monkeypatch):
    values = [float(place % 7) for place in range(50)]
    whole = mean(values, seed=3)
    monkeypatch.setattr("adafuse_core.evaluation.statistics._CHUNK", 500)
    assert mean(values, seed=3) == whole
    assert mean(values, seed=4) != whole


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(3, 2),
        lambda: wilson(0, 0),
        lambda: clopper_pearson(-1, 2),
        lambda: mcnemar(-1, 0),
        lambda: mean([]),
        lambda: paired_difference([1.0], [1.0, 2.0]),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(ValueError, match="got"):
        call()


def test_estimates_have_a_unit_and_a_dict():
    assert Estimate(value=0.5, low=0.25, high=0.75).scaled(100).to_dict() == {"value": 50.0, "low": 25.0, "high": 75.0}
