"""The table of strategies: requirements for every row, and what a user's own strategy can do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from adafuse_core import ConfigError, Ensemble, EnsembleConfig, PromptError, ScriptedMember
from adafuse_core.chooser import Chooser, pooled
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Draft, DraftPlan, Round, Span
from adafuse_core.strategies import STRATEGIES
from adafuse_core.strategies.base import Limits, Strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_is_a_frozen_dataclass_with_name_and_paper(name):
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.paper
    assert strategy.__dataclass_params__.frozen
    assert strategy() == strategy()


SHARED = {"branches", "branch_floor", "tau"}  # options that mean the same in strategies without a common base


def test_no_option_name_has_two_meanings():
    ensemble = {field.name for field in dataclasses.fields(EnsembleConfig)}
    for first, second in itertools.combinations(STRATEGIES.values(), 2):
        base = next(each for each in first.__mro__ if issubclass(second, each))
        inherited = {field.name for field in dataclasses.fields(base)}
        names = {field.name for field in dataclasses.fields(first)} & {
            field.name for field in dataclasses.fields(second)
        }
        assert names - inherited <= SHARED
    assert not ensemble & {field.name for row in STRATEGIES.values() for field in dataclasses.fields(row)}
    for name in SHARED:
        types = {field.type for row in STRATEGIES.values() for field in dataclasses.fields(row) if field.name == name}
        assert len(types) == 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_option_of_a_strategy_is_an_option_of_the_ensemble(name):
    for field in dataclasses.fields(STRATEGIES[name]):
        config = EnsembleConfig.from_any({"members": ["a", "b", "c"], "strategy": name, field.name: field.default})
        assert getattr(config.strategy, field.name) == field.default
        assert EnsembleConfig.from_any(config.to_dict()) == config


def test_option_of_another_strategy_is_refused():
    with pytest.raises(ConfigError, match=r"tau=0.5 has no meaning for strategy 'single'") as caught:
        Ensemble(strategy="single", tau=0.5)
    assert "beam" in caught.value.hint
    with pytest.raises(ConfigError, match="has no meaning for strategy 'beam'"):
        Ensemble(member="aspen")
    with pytest.raises(ConfigError, match=r"max_words=2 has no meaning for strategy 'beam'") as caught:
        Ensemble(max_words=2)
    assert "strategy='adafuse'" in caught.value.hint


def test_change_of_strategy_starts_with_default_options():
    config = EnsembleConfig.from_any({"members": ["m"], "tau": 0.5})
    assert config.updated({"strategy": "beam"}).strategy.tau == 0.5
    back = config.updated({"strategy": "single"}).updated({"strategy": "beam"})
    assert back.strategy.tau == 0.7


def test_beam_search_is_the_default():
    config = EnsembleConfig.from_any({"members": ["m"]})
    assert config == EnsembleConfig(members=("m",)) == config.updated({"strategy": "beam"})
    assert config.strategy == next(iter(STRATEGIES.values()))()
    assert config.to_dict()["strategy"] == "beam"


def test_options_that_the_defaults_of_a_strategy_exclude_are_refused_with_a_way_out():
    assert Ensemble(pool="linear").config.strategy.fusion.pool_exponent is None
    with pytest.raises(ConfigError, match="pool_over='word' has no meaning with scoring='byte'") as caught:
        Ensemble(scoring="byte")
    assert "pool_over='span'" in caught.value.hint
    assert Ensemble(scoring="byte", pool_over="span")


@dataclass(frozen=True, kw_only=True)
class WholeAnswers(Strategy):
    """Each member drafts a whole answer, all members score all answers, the best is committed in pieces."""

    name: ClassVar[str] = "whole_answers"
    paper: ClassVar[str] = "none"

    words: int = 2
    max_tokens: int = 50

    def rounds(self, prefixes: Prefixes, chooser: Chooser, limits: Limits) -> Iterator[Round]:
        plan = DraftPlan(tau=0.0, max_words=None, branches=1, max_tokens=self.max_tokens)
        answers = prefixes.each(lambda prefix: prefix.draft(plan))
        candidates = pooled(answers)
        best = chooser.decide(answers, candidates, prefixes.score([each.span for each in candidates])).winner.span.text
        while True:
            committed = prefixes[0].text
            assert best.startswith(committed)
            rest = best[len(committed) :].split(" ")
            text, more = " ".join(rest[: self.words]), len(rest) > self.words
            span = Span(text=text + " " if more else text, ends=not more)
            yield Round(drafts=(), candidates=pooled([Draft(member="all", spans=(span,), margins=())]))


def test_user_strategy_may_keep_state_during_an_answer():
    members = [ScriptedMember("a", "one two 3 four five"), ScriptedMember("b", "one two three four five", weight=2)]
    ensemble = Ensemble(members=members, strategy=WholeAnswers(words=2))
    assert ensemble.config.updated({"words": 3}).strategy == WholeAnswers(words=3)
    for _ in range(2):  # no state is left over from one request to the next
        answer = ensemble.generate("go")
        assert answer.text == "one two three four five"
        assert [played.span.text for played in answer.rounds] == ["one two ", "three four ", "five"]


def test_budgets_and_stop_strings_apply_to_a_user_strategy():
    ensemble = Ensemble(members=[ScriptedMember("a", "one two three four five")], strategy=WholeAnswers(words=2))
    assert ensemble.generate("go", max_new_tokens=3).text == "one two three"
    assert ensemble.generate("go", stop=["o th"]).text == "one tw"


def test_log_probabilities_of_a_lone_candidate_are_computed_on_request():
    ensemble = Ensemble(members=[ScriptedMember("a", "one two"), ScriptedMember("b", "one two")], strategy="adafuse")
    (without,), (scored,) = (ensemble.generate("go", logprobs=logprobs).rounds for logprobs in (False, True))
    assert without.span_scores == () == without.fused
    assert [score.member for score in scored.span_scores] == ["a", "b"]
    assert scored.fused == (0.125,)
    assert scored.to_dict()["logprobs"] == {"a": [-0.125] * 3, "b": [-0.125] * 3}


def test_one_text_in_place_of_a_list_of_continuations_is_refused():
    with pytest.raises(PromptError, match="expected a list"):
        Ensemble(members=[ScriptedMember("a", "one")]).score("go", "one")


def test_log_probabilities_of_a_word_cut_by_the_budget_are_its_own():
    members = [ScriptedMember("a", "one two three"), ScriptedMember("b", "one two 3")]
    ensemble = Ensemble(members=members, strategy="adafuse", tau=0.0)
    (played,) = ensemble.generate("go", logprobs=True, max_new_tokens=2).rounds
    assert played.cut == Span(text="one two")
    assert [len(score.logprobs) for score in played.span_scores] == [2, 2]
