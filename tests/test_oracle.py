"""The engine gives the text of the uncached oracle."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

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
    """The ensemble and the oracle's members."""
    ensemble = Ensemble.from_pretrained(*map(float64, paths), strategy="adafuse", max_word_tokens=cap)
    names = zip(paths, ensemble.names, strict=True)
    return ensemble, [OracleMember(path, cap, name=name) for path, name in names]


def differences(ensemble, oracle, prompts, settings, max_new_tokens, at_once=1):
    """The generations that differ, and the number compared; the ensemble runs several concurrently."""
    tolerance = ROUGH if "crossing" in ensemble.names else EXACT
    given = list(itertools.product(prompts, settings))

    def generate(asked):
        (prompt, tools), setting = asked
        return Ensemble(ensemble.config, **options(setting)).generate(
            prompt, tools=tools, max_new_tokens=max_new_tokens
        )

    def expected(asked):
        (prompt, tools), setting = asked
        grammar = tools and answer_grammar(Tools.of_request(tools, "auto", parallel=True), DIALECTS["hermes"])
        rule = OracleEnsemble(oracle, **options(setting))
        return rule.answer(prompt, tools=tools, grammar=grammar, max_new_tokens=max_new_tokens)

    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(generate, given))
    problems = [difference(answer, expected(asked), tolerance) for answer, asked in zip(answers, given, strict=True)]
    return [(asked, problem) for asked, problem in zip(given, problems, strict=True) if problem], len(problems)


def options(setting):
    return dict(zip(("tau", "max_words", "branches"), setting, strict=True))


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
    at_once = 1 if len(names) == 1 else 8
    wrong, compared = differences(ensemble, oracle, prompts, settings, 12, at_once)
    assert not wrong
    count(PROPERTY, compared, at_least=40)


SETTINGS = list(itertools.product((0.3, 0.7, 0.95), (1, 2, 3), (1, 3, 5)))  # tau, M, B
SQUARE = [
    SETTINGS[9 * i + 3 * j + (i + j) % 3] for i in range(3) for j in range(3)
]  # a Latin square: contains every pair of values
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
    wild = "modern" in names  # random weights, which give the longest possible words
    paths = [tiny_models.get(name) or small_models.path(name) for name in names]
    ensemble, oracle = build(paths, cap=8 if wild else CAP)
    prompts = [(list(q.messages), q.tools) for q in skill_prompts(2, seed=5) if q.kind == skill]
    assert prompts
    enough = 64 if skill in TOOL_SKILLS else 16  # enough to complete a call
    settings = SQUARE if wild or enough > 16 else SETTINGS
    wrong, compared = differences(ensemble, oracle, prompts, settings, enough, 8)
    assert not wrong
    count(PROPERTY, compared, at_least=18 if settings is SQUARE else 54)
