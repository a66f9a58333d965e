"""Metrics beside values computed by hand, and beside sacrebleu's own scores of whole sets."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
import sacrebleu

from adafuse_core import ConfigError
from adafuse_core.evaluation import translation
from adafuse_core.evaluation.metrics import (
    METRICS,
    exact_match,
    f1,
    last_number,
    lenient,
    lenient_numeric,
    normalized,
    numeric,
)

ANSWERS = ["The cat sat on the mat.", "Hello there, my good friend!", ""]
GOLDS = [["The cat sat on a mat."], ["Hello there, friend!"], ["Good night."]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple a day", "apple day"),
        ("Anna's the-atre", "annas theatre"),
        ("the", ""),
        ("5–7", "5–7"),  # SQuAD removes ASCII punctuation only
    ],
)
def test_normalization_is_that_of_squad(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "overlap", "contains"),
    [
        ("the Eiffel Tower.", ["Eiffel tower"], True, 1.0, True),
        ("in Paris", ["Paris", "Paris, France"], False, 2 / 3, True),
        ("Smith", ["John Smith"], False, 2 / 3, False),
        ("Parisian", ["Paris"], False, 0.0, True),
        ("a b c d", ["b c", "a b c x"], False, 2 * 2 / (3 + 2), True),
        ("", ["the"], True, 1.0, True),
        ("anything", ["the"], False, 0.0, False),
        ("", ["Paris"], False, 0.0, False),
        ("Paris Paris", ["Paris"], False, 2 / 3, True),
    ],
)
def test_answers_are_compared_with_every_accepted_one(answer, golds, exact, overlap, contains):
    assert exact_match(answer, golds) is exact
    assert f1(answer, golds) == pytest.approx(overlap)
    assert lenient(answer, golds) is contains


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She pays $1,234.50.", "1234.50"),
        ("from 5-7", "7"),
        ("x = 16 - 3", "3"),
        ("it is -3 degrees", "-3"),
        ("(4)-2", "2"),
        ("−8", "-8"),
        (".5", "0.5"),
        ("3 apples and 4.", "4"),
        ("１２", "12"),
        ("about 1e5.", "100000"),
        ("-2.5E-3 m", "-0.0025"),
        ("1e9999", "9999"),  # nobody's number
        ("3e4x", "4"),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == Decimal(number)


def test_a_text_without_number_is_never_right():
    assert last_number("none") is None
    assert not numeric("none", ["none"])
    assert not lenient_numeric("none", ["3"])


@pytest.mark.parametrize(
    ("answer", "gold", "right", "leniently_right"),
    [
        ("The answer is 18.", "16 - 3 = 13\nTherefore, the answer is 18", True, True),
        ("18.00", "18", True, True),
        ("8", "18", False, True),
        ("18", "8", False, False),
        ("-7", "7", False, True),
        ("2", "1,234", False, True),
        ("100", "10", False, False),
    ],
)
def test_numbers_are_equal_or_parts_of_each_other(answer, gold, right, leniently_right):
    assert numeric(answer, [gold]) is right
    assert lenient_numeric(answer, [gold]) is leniently_right


@pytest.mark.parametrize(("name", "library"), [("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU(tokenize="13a"))])
def test_summed_counts_give_sacrebleus_score_of_the_whole_set(name, library):
    metric = METRICS[name]
    rows = metric.rows(ANSWERS, GOLDS)
    expected = library.corpus_score(ANSWERS, [[golds[0] for golds in GOLDS]]).score
    assert 0 < expected < 100
    assert metric.score(np.sum(rows, axis=0)) == pytest.approx(expected, abs=1e-9)
    assert metric.estimate(rows).value == pytest.approx(expected, abs=1e-9)


def test_several_references_are_those_of_sacrebleu():
    rows = METRICS["bleu"].rows(["the dog ran home fast"], [["a dog ran home", "the dog ran home fast"]])
    assert METRICS["bleu"].score(rows[0]) == pytest.approx(100.0)
    assert all(METRICS[name].of("Please go on.", ["Please go on."]) <= 100 for name in ("bleu", "chrf"))


def test_scores_of_single_answers_are_from_0_to_100():
    assert METRICS["exact"].of("Paris", ["paris"]) == 100.0
    assert METRICS["f1"].of("in Paris", ["Paris"]) == pytest.approx(200 / 3)
    assert METRICS["chrf"].of("Hello", ["Hello"]) == pytest.approx(100.0)


def test_shares_have_wilson_intervals():
    rows = METRICS["exact"].rows(["a", "x", "x", "x"], [["x"]] * 4)
    estimate = METRICS["exact"].estimate(rows)
    assert (estimate.value, round(estimate.low, 1), round(estimate.high, 1)) == (75.0, 30.1, 95.4)


def test_spbleu_is_refused_without_its_tokenizer_and_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr("sacrebleu.utils.SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    translation._metric.cache_clear()
    with pytest.raises(ConfigError, match="spbleu") as error:
        METRICS["spbleu"].of("a", ["a"])
    assert "--tokenize flores200" in error.value.hint
    assert not list(tmp_path.iterdir())


def test_metrics_of_translations_name_their_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "adafuse[evaluation]"' in METRICS["chrf"].unavailable()
    assert METRICS["exact"].unavailable() is None
