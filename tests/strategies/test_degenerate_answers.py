"""Rare words of many tokens don't beat likely words, unless scores are means over tokens as in the paper."""

from __future__ import annotations

import pytest

from adafuse_core import Ensemble, ScriptedMember

PAPER = {"scoring": "token", "pool": "geometric"}
RULES = [
    {"strategy": "beam", "scoring": "sum"},  # the default
    {"scoring": "word", "pool": "linear"},
    {"scoring": "sum", "pool": "geometric", "look_ahead": 8},
    {"scoring": "sqrt_word", "pool": "geometric", "look_ahead": 8},
    {"scoring": "first_word", "pool": "geometric"},
]

RARE = {  # words with a first token that is unlikely, and later ones that follow from it
    "Gödel's": (-3.9, -0.02, -0.01, -0.01),  # 17 times less likely than "a"
    "1.1.1.1.1.1": (-4.5, -0.1, *[-0.01] * 10),
    "10000000000000": (-5.0, *[-0.02] * 13),
}
LIKELY = {"a": (-1.05,), "deterministic": (-1.4,), "yes": (-0.9,)}
PAIRS = [*zip(RARE, LIKELY, strict=True)]


def answer(rare, likely, rule):
    """The first word of two members that are unsure: both write the likely word, and one also tries the rare one."""
    logprobs = {**RARE, **LIKELY}
    members = [
        ScriptedMember("a", f" {likely} thing", margin=0.1, logprobs=logprobs),
        ScriptedMember("b", f" {likely} thing", margin=0.1, alternatives=[f" {rare}"], logprobs=logprobs),
    ]
    return (
        Ensemble(members=members, **{"strategy": "adafuse", **rule})
        .generate("Question:")
        .rounds[0]
        .span.text.strip()
        .split()[0]
    )


@pytest.mark.parametrize(("rare", "likely"), PAIRS)
def test_the_mean_over_tokens_prefers_the_rare_word(rare, likely):
    assert answer(rare, likely, PAPER) == rare


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("strategy") or rule["scoring"])
@pytest.mark.parametrize(("rare", "likely"), PAIRS)
def test_other_units_prefer_the_likely_word(rare, likely, rule):
    assert answer(rare, likely, rule) == likely
