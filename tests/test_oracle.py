"""The real path gives the text of the plain oracle, on every generation."""

from __future__ import annotations

import itertools

import pytest

from adafuse_core import Ensemble, MemberConfig, small_models
from adafuse_core.chat.call_grammar import answer_grammar
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.tools import Tools
from tests.agreement import EXACT, ROUGH, difference
from tests.oracle import CAP, OracleEnsemble, OracleMember
from training.curriculum.held_out import skill_prompts

PROPERTY = "generations equal to the oracle"


def float64(path):
    return MemberConfig(model=str(path), dtype="float64")


def build(paths, cap=CAP):
    """The real ensemble, and the oracle's members."""
    ensemble = Ensemble.from_pretrained(*map(float64, paths), max_word_tokens=cap)
    names = zip(paths, ensemble.names, strict=True)
    return ensemble, [OracleMember(path, cap, name=name) for path, name in names]


def differences(ensemble, oracle, prompts, settings, max_new_tokens):
    """The generations that differ, and how many were compared."""
    wrong, count = [], 0
    tolerance = ROUGH if "crossing" in ensemble.names else EXACT
    for prompt, tools in prompts:
        grammar = tools and answer_grammar(Tools.of_request(tools, "auto", parallel=True), DIALECTS["hermes"])
        for tau, max_words, branches in settings:
            options = {"tau": tau, "max_words": max_words, "branches": branches}
            given = {"tools": tools, "max_new_tokens": max_new_tokens}
            expected = OracleEnsemble(oracle, **options).answer(prompt, grammar=grammar, **given)
            problem = difference(Ensemble(ensemble.config, **options).generate(prompt, **given), expected, tolerance)
            wrong += [(prompt, options, problem)] if problem else []
            count += 1
    return wrong, count


HAND_MADE = [
    ["bytes"],
    ["pieces"],
    ["crossing"],
    ["bytes", "pieces"],
    ["modern", "pieces"],
    ["pieces", "characters"],
    ["crossing", "bytes"],
    ["bytes", "pieces", "modern"],
]
ODD_PROMPTS = [
    "The quick",
    "Answer: ",
    "x = [1984,\n    ",
    "Grüße 日本",
    [{"role": "user", "content": "Smile 😀\n\n| a < b |"}],
]


@pytest.mark.parametrize("names", HAND_MADE, ids="+".join)
def test_tokenizers_that_disagree_give_the_oracles_text(tiny_models, names, count):
    ensemble, oracle = build([tiny_models[name] for name in names], cap=CAP if len(names) < 3 else 8)
    settings = list(itertools.product((0.2, 0.7), (1, 3), (1, 3)))
    prompts = [(prompt, None) for prompt in ODD_PROMPTS]
    wrong, compared = differences(ensemble, oracle, prompts, settings, max_new_tokens=12)
    assert not wrong
    count(PROPERTY, compared, at_least=40)


SETTINGS = list(itertools.product((0.3, 0.7, 0.95), (1, 2, 3), (1, 3, 5)))  # tau, M, B
SQUARE = [SETTINGS[9 * i + 3 * j + (i + j) % 3] for i in range(3) for j in range(3)]  # any two values meet in it
PLAIN_SKILLS = ["fact", "composed", "translation", "reading", "small_talk"]
TOOL_SKILLS = ["tool_call", "tool_answer"]
CASES = [
    *itertools.product([["aspen"], ["aspen", "birch"]], PLAIN_SKILLS + TOOL_SKILLS),
    *itertools.product([["birch", "aspen", "modern"]], PLAIN_SKILLS),
    *itertools.product([["birch", "aspen", "birch"]], TOOL_SKILLS),
]


@pytest.mark.parametrize(
    ("names", "skill"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_every_skill_gives_the_oracles_text(tiny_models, names, skill, count):
    wild = "modern" in names  # a model of random weights, which writes the longest words there can be
    paths = [tiny_models.get(name) or small_models.path(name) for name in names]
    ensemble, oracle = build(paths, cap=8 if wild else CAP)
    prompts = [(list(q.messages), q.tools) for q in skill_prompts(2, seed=5) if q.kind == skill]
    assert prompts
    enough = 64 if skill in TOOL_SKILLS else 16  # a call that has begun is closed before the budget ends
    settings = SQUARE if wild or enough > 16 else SETTINGS
    wrong, compared = differences(ensemble, oracle, prompts, settings, enough)
    assert not wrong
    count(PROPERTY, compared, at_least=18 if settings is SQUARE else 54)
