"""Fixed spans: hand-made rounds, the filter of outliers, and the rounds of a plain implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_core import ConfigError, Ensemble, ScriptedMember
from adafuse_core.fusion import Fusion
from adafuse_core.rounds import Score
from adafuse_core.strategies.span import FilteredFusion, FixedSpan
from tests.oracle import OracleEnsemble, fused
from tests.strategies.bigrams import BigramMember
from tests.strategies.teams import PROPERTY, team_of

ONE = {"": {"red": 0.6, "blue": 0.4}, "red": {"sky": 0.3, "sea": 0.7}, "blue": {"sky": 0.9, "sea": 0.1}}
TWO = {"": {"red": 0.1, "blue": 0.9}, "red": {"sky": 0.5, "sea": 0.5}, "blue": {"sky": 0.8, "sea": 0.2}}


def spans(played):
    return [candidate.span.text for candidate in played.candidates]


def test_every_member_writes_a_span_and_the_lowest_mean_wins():
    ensemble = Ensemble(members=[BigramMember("one", ONE), BigramMember("two", TWO)], strategy="span", words=2)
    played, end = ensemble.generate("go").rounds
    assert spans(played) == [" red sea", " blue sky"]
    red = -(math.log(0.6 * 0.7) + math.log(0.1 * 0.5)) / 4  # two members, two words
    blue = -(math.log(0.4 * 0.9) + math.log(0.9 * 0.8)) / 4
    assert played.fused == pytest.approx((red, blue))
    assert played.span.text == " blue sky"
    assert end.span.ends
    assert end.scores == ()  # both members end: a lone candidate


def test_a_span_with_branches_has_a_candidate_for_each_first_word():
    ensemble = Ensemble(
        members=[BigramMember("one", ONE), BigramMember("two", TWO)], strategy="span", words=2, branches=2
    )
    played = ensemble.generate("go").rounds[0]
    assert spans(played) == [" red sea", " blue sky", " red sky"]  # the second member likes sky after red, too
    assert [candidate.proposers for candidate in played.candidates] == [("one",), ("one", "two"), ("two",)]
    assert all(candidate.ahead is None for candidate in played.candidates)


def test_a_span_ends_at_the_end_of_the_answer_and_after_a_stop_string():
    members = [ScriptedMember("a", "one two three four five six"), ScriptedMember("b", "one two 3 four five six")]
    ensemble = Ensemble(members=members, strategy="span", words=5)
    assert [len(spans(played)) for played in ensemble.generate("go").rounds] == [2, 1]
    answer = ensemble.generate("go", stop="two")
    assert [spans(played) for played in answer.rounds] == [["one two"]]  # no word after the stop string
    assert (answer.text, answer.stop) == ("one ", "two")


def filtered(ratio, values, weights=None, pool="geometric"):
    return FilteredFusion(outlier_ratio=ratio, pool=pool).average(values, weights or [1.0] * len(values))


def test_extreme_perplexities_are_left_out_above_the_ratio():
    low, middle, high = math.log(2), math.log(5), math.log(40)
    assert filtered(10.0, [low, middle, high]) == middle  # 40 / 2 is more than 10
    assert filtered(20.5, [low, middle, high]) == pytest.approx((low + middle + high) / 3)
    assert filtered(10.0, [high, low, middle, middle + 1]) == middle + 0.5
    assert filtered(10.0, [high, low]) == low  # of two members, only the highest is left out
    assert filtered(10.0, [middle, low]) == pytest.approx((low + middle) / 2)
    assert filtered(10.0, [low, high, high, low], [1.0, 2.0, 3.0, 5.0]) == (high * 3 + low * 5) / 8  # the first ones
    assert filtered(1.0, [low, low, low]) == low


@pytest.mark.parametrize(("ratio", "text"), [(None, " b"), (10.0, " a"), (1000.0, " b")])
def test_the_filter_decides_a_round(ratio, text):
    tables = [{"": {"a": 0.5, "b": 0.4}}, {"": {"a": 0.48, "b": 0.3}}, {"": {"b": 0.5, "a": 0.001}}]
    members = [BigramMember(name, table) for name, table in zip("xyz", tables, strict=True)]
    # Without extremes, "a" has 0.48; with them, less than "b".
    assert Ensemble(members=members, strategy="span", words=1, outlier_ratio=ratio).generate("go").text == text


def test_the_filter_applies_to_given_continuations():
    tables = [{"": {"a": 0.5}}, {"": {"a": 0.4}}, {"": {"a": 0.001}}]
    members = [BigramMember(name, table) for name, table in zip("xyz", tables, strict=True)]
    (scored,) = Ensemble(members=members, strategy="span", outlier_ratio=10.0).score("go", [" a"])
    assert scored.value == pytest.approx(-math.log(0.4))


VALUES = st.floats(0.0, 20.0)


@given(st.lists(st.tuples(VALUES, st.floats(0.1, 5.0)), min_size=1, max_size=6), st.floats(1.0, 100.0))
def test_the_filter_agrees_with_plain_code(voters, ratio):
    values, weights = map(list, zip(*voters, strict=True))
    expected = [*voters]
    if max(values) - min(values) > math.log(ratio):
        del expected[values.index(max(values))]
        if len(values) > 2:
            expected.remove(next(voter for voter in voters if voter[0] == min(values)))
    plain = Fusion().average(*map(list, zip(*expected, strict=True)))
    assert filtered(ratio, values, weights) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("option", "value"), [("words", 0), ("words", 1.5), ("branches", 0), ("outlier_ratio", 0.9), ("outlier_ratio", "x")]
)
def test_a_wrong_option_is_refused(option, value):
    with pytest.raises(ConfigError, match=rf"got {option}={value!r}"):
        FixedSpan(**{option: value})


class OracleSpans(OracleEnsemble):
    """The plain implementation, by the oracle's members."""

    def __init__(self, members, *, words=4, branches=1, outlier_ratio=None, **rule):
        super().__init__(members, tau=0.0, max_words=words, branches=1, **rule)
        self.ratio = outlier_ratio
        if branches > 1:
            self.plan = (1.0, 1, branches)
            self.ahead |= {"ahead": words, "commit": words}

    def answer(self, prompt, *, stop=(), **given):
        self.until = tuple(stop)
        return super().answer(prompt, stop=stop, **given)

    def proposed(self):
        self.stop = self.until
        played = super().proposed()
        drafts = tuple(replace(draft, ahead=()) for draft in played.drafts)
        names = {}
        for candidate in played.candidates:
            names.setdefault(candidate.span, []).extend(candidate.proposers)
        order = [member.name for member in self.members]
        candidates = tuple(
            replace(
                next(each for each in played.candidates if each.span == span),
                ahead=None,
                proposers=tuple(sorted(set(found), key=order.index)),
            )
            for span, found in names.items()
        )
        return replace(played, drafts=drafts, candidates=candidates)

    def fuse(self, values):
        voters = sorted(zip(values, [member.weight for member in self.members], strict=True))
        if self.ratio is not None and math.exp(voters[-1][0]) / math.exp(voters[0][0]) > self.ratio:
            voters = voters[:1] if len(voters) == 2 else voters[1:-1]
        return fused(*zip(*voters, strict=True), *self.pool)


RULES = [
    {},
    {"words": 1, "scoring": "sum", "pool": "linear"},
    {"words": 3, "branches": 3},
    {"words": 2, "branches": 2, "scoring": "word", "pool": "max"},
    {"words": 2, "outlier_ratio": 1.5},
    {"words": 2, "branches": 3, "outlier_ratio": 1.1, "scoring": "byte"},
]


@pytest.mark.parametrize("names", [["aspen", "birch"], ["bytes", "pieces", "modern"]], ids="+".join)
def test_rounds_equal_those_of_the_plain_implementation(tiny_models, names, count):
    team = team_of(names, tiny_models, OracleSpans)
    choices, compared = 0, 0
    for number, (rule, prompt) in enumerate(zip(RULES, team.prompts * 2, strict=True)):
        middle = {} if number % 3 else {"stop": ("e",)}
        expected, problem = team.compared(prompt, "span", rule, logprobs=number % 2 == 0, **middle)
        assert not problem, (rule, prompt, problem)
        choices += sum(len(played.candidates) > 1 for played in expected.rounds)
        compared += 1
    assert choices >= 5
    count(PROPERTY, compared, at_least=6)


def test_scores_of_a_filtered_fusion_keep_the_scoring_rule():
    score = Score(member="m", logprobs=(-1.0, -3.0), words=1, bytes=8, word_ends=(2,))
    assert FilteredFusion(outlier_ratio=2.0, scoring="byte").values([score]) == (0.5,)
    assert FixedSpan(outlier_ratio=2.0, scoring="word", pool="power", pool_exponent=0.5).fusion == FilteredFusion(
        outlier_ratio=2.0, scoring="word", pool="power", pool_exponent=0.5
    )
