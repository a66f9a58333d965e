"""Beam search: hand-made searches, and the rounds of a plain implementation."""

from __future__ import annotations

import itertools
import math

import pytest

from adafuse_core import ConfigError, Ensemble, ScriptedMember
from adafuse_core.strategies.beam import Beam
from tests.strategies.bigrams import BigramMember
from tests.strategies.oracle_beam import OracleBeam
from tests.strategies.teams import PROPERTY, team_of

# Every word is branched, and hypotheses are compared at the end by their mean per token.
BY_TOKENS = {"strategy": "beam", "tau": 1.0, "scoring": "token", "pool": "geometric", "pool_over": "span"}


def searched(*tables, **options):
    """The answer of members with these tables."""
    members = [BigramMember(f"m{at}", table) for at, table in enumerate(tables)]
    return Ensemble(members=members, **{**BY_TOKENS, **options}).generate("go")


def proposals(played):
    return [(candidate.scored.text, candidate.scored.ends) for candidate in played.candidates]


def words(answer):
    return [(played.span.text, played.proposers) for played in answer.rounds]


LATER = {"": {"a": 0.6, "b": 0.4}, "a": {"x": 0.5, "y": 0.45}, "b": {"z": 0.9, "y": 0.1}}


def test_a_word_that_is_likelier_as_a_whole_needs_a_second_hypothesis():
    assert searched(LATER, beams=1).text == " a x"  # 0.6 > 0.4
    answer = searched(LATER, beams=2)
    assert answer.text == " b z"  # 0.4 * 0.9 > 0.6 * 0.5
    first, *others = answer.rounds
    assert proposals(first) == [(" b z", True), (" a x", True)]
    assert first.fused == pytest.approx((-math.log(0.4 * 0.9) / 3, -math.log(0.6 * 0.5) / 3))  # the end is a token
    assert (first.span.text, first.winner.proposers) == (" b", ("m0",))
    assert [proposals(played) for played in others] == [[(" z", False)], [("", True)]]


def test_all_members_score_every_hypothesis():
    one = {"": {"a": 0.9, "b": 0.1}, "a": {"x": 0.4, "y": 0.6}}
    two = {"": {"a": 0.2, "b": 0.8}, "a": {"x": 0.9, "y": 0.1}, "b": {"x": 0.3, "y": 0.7}}
    answer = searched(one, two, beams=2, branches=2)
    first, last, end = answer.rounds
    assert proposals(first) == [(" a", False)]  # "a x" has 0.9 * 0.4 * 0.2 * 0.9, "a y" 0.0108, "b x" less
    assert proposals(last) == [(" x", True), (" y", True)]
    assert last.fused == pytest.approx((-math.log(0.4 * 0.9) / 4, -math.log(0.6 * 0.1) / 4))  # two members and tokens
    assert proposals(end) == [("", True)]
    assert answer.text == " a x"


def test_hypotheses_are_pruned_by_sums_and_compared_at_the_end_by_the_scoring_rule():
    table = {"": {"a": 1.0}, "a": {".": 0.5, "b": 0.5}, "b": {"c": 0.8, "d": 0.2}}
    for scoring, text in (("token", " a b c"), ("sum", " a")):  # -ln 0.5 = 0.69 > -ln 0.4 / 3 = 0.31; 0.69 < 0.92
        answer = searched(table, beams=2, branches=2, scoring=scoring)
        assert answer.text == text
        first, second, *_ = answer.rounds
        assert proposals(first) == [(" a", False)]  # all hypotheses begin with it
        assert first.scores == ()
        assert proposals(second)[0] == ("", True)  # complete after " a", it waits for the others
        assert second.proposers == ("m0",)


def test_the_best_hypothesis_is_committed_at_the_horizon():
    table = {"": {"a": 0.6, "b": 0.4}, "a": {"a": 1.0}, "b": {"b": 1.0}}
    ensemble = Ensemble(members=[BigramMember("m", table)], **BY_TOKENS, beams=2, horizon=3)
    first, *others = ensemble.generate("go", max_new_tokens=7).rounds
    assert proposals(first) == [(" a a a", False), (" b b b", False)]
    assert [played.span.text for played in others] == [" a"] * 6
    first, _ = ensemble.generate("go", max_new_tokens=2).rounds
    assert proposals(first) == [(" a a", False), (" b b", False)]  # nothing is drafted beyond the budget


def test_a_hypothesis_with_a_stop_string_is_not_extended():
    table = {"": {"a": 0.6, "b": 0.4}, "a": {"c": 1.0}, "b": {"c": 1.0}, "c": {"d": 1.0}}
    members = [BigramMember("m", table)]
    ensemble = Ensemble(members=members, strategy="beam", beams=2, branches=2, unlikely_ends=True)
    answer = ensemble.generate("go", stop=["c", "b"])
    assert [proposals(played) for played in answer.rounds] == [[(" b", False), (" a c", False)], [(" c", False)]]
    assert (answer.text, answer.stop) == (" a ", "c")


def test_a_text_that_is_reached_in_two_ways_is_one_hypothesis():
    table = {"": {"a b": 0.5, "a": 0.5}, "a": {"b": 1.0}}  # a word with a blank: at once, or in two steps
    ensemble = Ensemble(members=[BigramMember("m", table)], strategy="beam", beams=2, branches=2)
    assert [proposals(played) for played in ensemble.generate("go", stop="b").rounds] == [[(" a b", False)]]


def test_an_end_is_tried_only_if_it_is_likeliest():
    """The shortest answers have the highest sums: ends that nobody would write win otherwise."""
    table = {"": {"a": 0.5, ".": 0.3, "b": 0.2}, "a": {"x": 0.5, "y": 0.5}, "b": {"x": 0.5, "y": 0.5}}
    assert searched(table, scoring="sum", tau=0.7).text.startswith(" a ")
    assert searched(table, scoring="sum", tau=0.7, unlikely_ends=True).text == ""
    assert searched(table | {"": {".": 0.5, "a": 0.5}}, scoring="sum", tau=0.7).text == ""
    stops = Ensemble(members=[BigramMember("m", table)])
    assert stops.generate("go", stop="b").text.startswith(" a ")
    assert (
        Ensemble(members=[ScriptedMember("m", "one two", margin=0.0, alternatives=[" end"])])
        .generate("go", stop="end")
        .text
        == "one two"
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_a_stop_string_in_a_thought_does_not_end_the_search(beams):
    texts = ["<think>one two three</think>yes two no", "<think>one two 3</think>yes two no"]
    members = [ScriptedMember(name, text) for name, text in zip("ab", texts, strict=True)]
    ensemble = Ensemble(members=members, strategy="beam", beams=beams, horizon=4)
    answer = ensemble.generate([{"role": "user", "content": "go"}], stop="two")
    assert answer.reasoning.startswith("one two")
    assert (answer.text, answer.stop) == ("yes ", "two")


@pytest.mark.parametrize("window", [2, 3, 5, 8, 50])
def test_the_answer_ends_where_a_context_window_is_full(window):
    members = [
        ScriptedMember("a", "one two three four five six seven"),
        ScriptedMember("b", "one 2 three 4 five 6 seven", context_window=window),
    ]
    answer = Ensemble(members=members, strategy="beam", beams=2).generate("go")
    assert len(answer.text.split()) == min(window - 1, 7)
    assert answer.reason == ("stop" if window >= 8 else "length")


def test_each_word_is_a_round_with_its_own_proposers_and_drafts():
    one = {"": {"a": 0.6, "b": 0.4}, "a": {"x": 0.9, "y": 0.1}, "b": {"x": 1.0}, "x": {"c": 1.0}}
    two = {"": {"a": 0.5, "d": 0.5}, "a": {"y": 0.9, "x": 0.1}, "d": {"x": 1.0}, "y": {"c": 1.0}}
    answer = searched(one, two, beams=3, branches=2, horizon=2, scoring="sum", tau=0.5)
    (first, *_), text = answer.rounds, answer.text
    assert len(first.candidates) == 3
    assert all(each.span.text.split() == each.scored.text.split()[:1] for each in first.candidates)
    assert "".join(text for text, _ in words(answer)) == text
    assert all(len(text.split()) <= 1 for text, _ in words(answer))
    for played in answer.rounds:
        assert played.proposers == tuple(each.member for each in played.drafts if played.span in each.spans)


def test_a_round_names_all_members_that_wrote_its_words():
    members = [ScriptedMember("a", "one two three"), ScriptedMember("b", "one 2 three")]
    ensemble = Ensemble(members=members, strategy="beam", beams=1, horizon=9)
    assert [played.proposers for played in ensemble.generate("go").rounds] == [("a", "b"), ("a",), ("a", "b")]


@pytest.mark.parametrize("option", ["beams", "branches", "horizon"])
def test_a_wrong_option_is_refused(option):
    for wrong in (0, 1.5, None):
        with pytest.raises(ConfigError, match=rf"got {option}={wrong!r}"):
            Beam(**{option: wrong})


@pytest.mark.parametrize("wrong", ["yes", 1, None])
def test_a_switch_is_true_or_false(wrong):
    with pytest.raises(ConfigError, match=rf"got unlikely_ends={wrong!r}, expected True or False"):
        Beam(unlikely_ends=wrong)


@pytest.mark.parametrize("option", [{"anchor": "a"}, {"max_words": 2}])
def test_an_option_without_meaning_is_refused(option):
    with pytest.raises(ConfigError, match="has no meaning for strategy 'beam'"):
        Ensemble(members=[ScriptedMember("a", "x")], strategy="beam", **option)


BY_TOKENS_RULE = {name: value for name, value in BY_TOKENS.items() if name != "strategy"}
RULES = [
    {**BY_TOKENS_RULE, "horizon": 4},
    {**BY_TOKENS_RULE, "beams": 2, "branches": 2, "horizon": 2, "scoring": "word", "pool": "linear"},
    {**BY_TOKENS_RULE, "beams": 4, "branches": 2, "horizon": 3, "scoring": "sqrt_word"},
    {**BY_TOKENS_RULE, "beams": 1, "branches": 2, "pool": "max"},
    {"horizon": 3},
    {"branch_floor": 0.5, "pool": "median", "horizon": 3},
    {"unlikely_ends": True, "horizon": 4},
    {"weighting": "prompt", "horizon": 3},
    {"weighting": "nll", "horizon": 2, "tau": 1.0},
]


@pytest.mark.parametrize("names", [["aspen", "birch"], ["bytes", "pieces"], ["modern", "characters"]], ids="+".join)
def test_rounds_equal_those_of_the_plain_implementation(tiny_models, names, count):
    team = team_of(names, tiny_models, OracleBeam)
    choices, shared, compared = 0, 0, 0
    for number, (rule, prompt) in enumerate(zip(RULES, itertools.cycle(team.prompts), strict=False)):
        stop = {} if number % 2 else {"stop": ("an",)}
        expected, problem = team.compared(prompt, "beam", rule, logprobs=number % 2 == 0, max_new_tokens=8, **stop)
        assert not problem, (rule, prompt, problem)
        choices += sum(len(played.candidates) > 1 for played in expected.rounds)
        shared += sum(len(played.candidates) == 1 for played in expected.rounds)
        compared += 1
    assert choices >= 3
    assert shared >= 1
    count(PROPERTY, compared, at_least=4)
