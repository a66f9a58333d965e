"""The advice that follows from hand-made marks."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from adafuse_core.evaluation.advice import advise
from adafuse_core.evaluation.comparisons import LEVEL, Marks, questions_needed


def marks(**rows):
    """Marks from texts of 0 and 1: one letter is a member, several are an ensemble."""
    values = {name: [float(mark) for mark in row] for name, row in rows.items()}
    members = {name: row for name, row in values.items() if len(name) == 1}
    return Marks(members=members, ensembles={tuple(name): row for name, row in values.items() if len(name) > 1})


def test_a_clear_gain():
    advice = advise(marks(a="10" * 50, b="01" * 50, ab="1" * 90 + "0" * 10))
    assert advice.advised == ("a", "b")
    assert advice.best == "a"
    assert advice.reason.startswith(
        "Use a + b together. On 100 questions it scores 90.0%, 40.0 points more than the best member alone, a: "
    )
    assert "won 45, lost 5" in advice.reason
    assert advice.reason.endswith("Four times as many questions, 400, would halve this interval.")
    (pair,) = advice.combinations
    assert (pair.union, pair.contradiction, pair.beta.value, pair.beyond) == (1.0, 1.0, 0.0, 0)
    assert pair.choice_gain == pytest.approx(0.5)


def test_a_gain_that_may_be_chance():
    advice = advise(marks(a="1100" * 25, b="1010" * 25, ab="1101" * 3 + "1100" * 22))
    assert advice.advised == ("a",)
    assert "scores 3.0 points more, but this may be chance" in advice.reason
    needed = advice.combinations[0].overall.needed
    assert 250 < needed < 300  # (1.96 + 0.84)^2 * 0.97 * 0.03 / 0.03^2
    assert advice.reason.endswith(f"If it is real, about {needed} questions would show it.")


def test_no_difference():
    advice = advise(marks(a="1100" * 25, b="1010" * 25, ab="1010" * 25))
    assert advice.advised == ("a",)
    assert "scores the same" in advice.reason
    assert "400 would halve" in advice.reason


def test_harm():
    advice = advise(marks(a="1110" * 25, b="1010" * 25, ab="1010" * 25))
    assert advice.advised == ("a",)
    assert "scores 25.0 points less: " in advice.reason
    assert "chance" not in advice.reason


def test_a_loss_that_may_be_chance():
    advice = advise(marks(a="1" * 50 + "0" * 50, b="0" * 100, ab="1" * 48 + "0" * 52))
    assert advice.advised == ("a",)
    assert "scores 2.0 points less, but this may be chance" in advice.reason


def test_everything_right():
    advice = advise(marks(a="1" * 40, b="1" * 39 + "0", ab="1" * 40))
    assert advice.advised == ("a",)
    assert "without an error" in advice.reason
    assert advice.combinations[0].beta.value == 0


@pytest.mark.parametrize("questions", [1, 40])
def test_everything_wrong(questions):
    advice = advise(marks(a="0" * questions, b="0" * questions, ab="0" * questions))
    assert advice.advised == ("a",)
    assert advice.reason.startswith("Nothing was answered correctly on ")
    pair = advice.combinations[0]
    assert (pair.beta.value, pair.union) == (1.0, 0.0)
    assert pair.most_by_choice == pytest.approx(1 - 0.05 ** (1 / questions))


def test_three_questions_never_speak_for_an_ensemble():
    for columns in itertools.combinations_with_replacement(itertools.product("01", repeat=3), 3):
        a, b, both = ("".join(row) for row in zip(*columns, strict=True))
        assert len(advise(marks(a=a, b=b, ab=both)).advised) == 1
    advice = advise(marks(a="000", b="000", ab="111"))
    assert "about 6 questions would show it" in advice.reason
    assert advice.combinations[0].beyond == 3


def test_the_ensemble_has_to_beat_the_best_of_all_members():
    advice = advise(marks(a="1" * 90 + "0" * 10, b="10" * 50, c="01" * 50, bc="1" * 85 + "0" * 15))
    assert advice.advised == ("a",)
    (pair,) = advice.combinations
    assert (pair.own.member, pair.overall.member) == ("b", "a")
    assert pair.own.difference.low > 0 > pair.overall.difference.value


def test_of_equal_ensembles_the_smaller_one_is_advised():
    good = "1" * 90 + "0" * 10
    advice = advise(marks(a="10" * 50, b="01" * 50, c="0" * 100, abc=good, ab=good, ac="10" * 50, bc="01" * 50))
    assert advice.advised == ("a", "b")


def test_the_level_is_shared_by_all_ensembles():
    a, ab = "0" * 100, "1" * 6 + "0" * 94  # McNemar: p = 2 / 2**6 = 0.03
    assert advise(marks(a=a, b=a, ab=ab)).advised == ("a", "b")
    assert advise(marks(a=a, b=a, c=a, ab=ab, ac=a, bc=a, abc=a)).advised == ("a",)


def test_an_ensemble_without_effect_is_seldom_advised():
    draw, wrong = random.Random(0), 0
    for _ in range(40):
        rows = {name: [float(draw.random() < 0.5) for _ in range(60)] for name in ("a", "ab", "ac")}
        found = Marks(
            members={"a": rows["a"], "b": [0.0] * 60, "c": [0.0] * 60},
            ensembles={tuple(name): rows[name] for name in ("ab", "ac")},
        )
        wrong += len(advise(found).advised) > 1
    assert wrong <= 2 + 40 * LEVEL


def test_contradictions_need_a_sure_member():
    given = marks(a="1100", b="1010", ab="1110")
    assert advise(given).combinations[0].contradiction == 0.5
    doubtful = Marks(
        members=given.members,
        ensembles=given.ensembles,
        sure={"a": [True, True, False, True], "b": [True, True, True, True]},
    )
    assert advise(doubtful).combinations[0].contradiction == 0.25


def test_grades_have_a_union_but_no_beta():
    grades = Marks(
        members={"a": [0.5, 0.25, 0.1, 0.0] * 10, "b": [0.25, 0.5, 0.0, 0.1] * 10},
        ensembles={("a", "b"): [0.5, 0.5, 0.1, 0.1] * 10},
    )
    advice = advise(grades)
    (pair,) = advice.combinations
    assert pair.union == pytest.approx(0.3)
    assert (pair.beta, pair.contradiction, pair.beyond, pair.most_by_choice) == (None, None, None, pair.union)
    assert advice.advised == ("a", "b")
    assert "by the sign test" in advice.reason


def test_a_single_member_is_advised_alone():
    assert advise(marks(a="10")).reason == "Use a alone. No ensemble was tried."


@pytest.mark.parametrize(
    ("members", "ensembles", "complaint"),
    [
        ({}, {}, "members"),
        ({"a": []}, {}, "at least 1"),
        ({"a": [1]}, {("a",): [1, 0]}, r"\[1, 2\]"),
        ({"a": [1]}, {("a", "b"): [1]}, "'b'"),
        ({"a": [100]}, {}, "0 to 1"),
    ],
)
def test_wrong_marks_are_refused(members, ensembles, complaint):
    with pytest.raises(ValueError, match=complaint):
        Marks(members=members, ensembles=ensembles)


def test_the_number_of_questions_needed():
    assert questions_needed([0.0, 0.0]) is None
    assert questions_needed([-1.0, 0.0]) is None
    assert questions_needed([1.0]) == questions_needed([1.0] * 9) == 6  # 2 / 2**6 < 0.05
    assert questions_needed([1.0] * 9, tried=4) == 8  # 2 / 2**8 < 0.05 / 4


def test_advice_is_json():
    values = json.loads(json.dumps(advise(marks(a="10", b="01", ab="11")).to_dict()))
    assert values["advised"] == ["a"]
    assert values["combinations"][0]["name"] == "a + b"
    assert values["combinations"][0]["choice_gain"] == 0.5
