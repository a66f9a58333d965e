"""What strategies declare to need of a backend is what they use, so that other backends are refused at load."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adafuse_core import ConfigError, Ensemble
from adafuse_core.backends.local import LocalSession
from adafuse_core.members.scripted import ScriptedMember
from adafuse_core.strategies import STRATEGIES

NAMES = ("bytes", "pieces", "modern")
OPTIONS = {
    "adafuse": [{}, {"branches": 1}, {"branches": 6}, {"look_ahead": 2, "weighting": "prompt"}],
    "beam": [{"horizon": 2, "beams": 2}, {"branches": 7, "horizon": 1}],
    "consensus": [{"branches": 5}],
    "panel": [{}, {"mode": "merge"}],
    "rerank": [{"rule": rule} for rule in ("vote", "mbr", "nll", "own")],
    "selective": [{}],
    "single": [{}],
    "span": [{}, {"branches": 4}],
    "token_union": [{}, {"top_tokens": 1}, {"top_tokens": 4, "gate": 0.3}, {"union": "full", "top_tokens": 3}],
}


@pytest.fixture(scope="module")
def members(tiny_models):
    return [{"model": str(tiny_models[name]), "name": name, "dtype": "float64"} for name in NAMES]


def test_all_strategies_are_covered():
    assert set(OPTIONS) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", OPTIONS)
def test_a_strategy_asks_for_no_more_likeliest_tokens_than_it_needs(strategy, members, monkeypatch):
    asked, draft = [], LocalSession.draft

    def recorded(session, contexts, max_new, top, *arguments):
        asked.append(top)
        return draft(session, contexts, max_new, top, *arguments)

    monkeypatch.setattr(LocalSession, "draft", recorded)
    for options in OPTIONS[strategy]:
        with Ensemble(members=members, strategy=strategy, max_word_tokens=6, **options) as ensemble:
            asked.clear()
            ensemble.generate("The quick", max_new_tokens=4)
            needs, most = ensemble.config.strategy.needs, max(asked)
            assert needs.full_distribution == (most > 100)
            assert needs.full_distribution or 1 <= most <= needs.top


@pytest.mark.parametrize("strategy", OPTIONS)
def test_a_backend_that_reports_less_is_refused(strategy):
    for options in OPTIONS[strategy]:
        needs = STRATEGIES[strategy](**options).needs
        for top, full, enough in ((needs.top, True, True), (needs.top - 1, True, False), (None, False, None)):
            team = [ScriptedMember(name, "one") for name in NAMES]
            team[0].abilities = replace(team[0].abilities, top=top, full_distribution=full)
            if enough is False or (enough is None and needs.full_distribution):
                with pytest.raises(ConfigError, match="member 'bytes'"):
                    Ensemble(members=team, strategy=strategy, **options)
            else:
                Ensemble(members=team, strategy=strategy, **options)
