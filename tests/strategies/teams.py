"""Ensembles of float64 models beside the reference implementation's members, and what is asked of both."""

from __future__ import annotations

from adafuse_core import Ensemble, MemberConfig, small_models
from tests.agreement import difference
from tests.oracle import OracleMember

PROPERTY = "generations equal to the oracle"
CAP = 8  # maximum tokens of a word: random models write long ones
QUESTIONS = [
    [{"role": "user", "content": text}]
    for text in ("What is the capital of Peru?", "Who wrote Faust?", "Tell me about yourself.")
]
TEXTS = ["The quick", "x = [1984,\n    ", "Grüße 日本"]


class Team:
    """An ensemble with unequal weights, and the members of the oracle.

    Args:
        paths: Folders of the models.
        prompts: What is asked.
        rule: Class of the plain implementation: `OracleEnsemble` or a subclass.
    """

    def __init__(self, paths, prompts, rule):
        weights = (1.0, 0.6, 1.7, 1.2)[: len(paths)]
        members = [
            MemberConfig(model=str(path), dtype="float64", weight=weight)
            for path, weight in zip(paths, weights, strict=True)
        ]
        self.ensemble = Ensemble(members=members, max_word_tokens=CAP)
        named = zip(paths, weights, self.ensemble.names, strict=True)
        self.oracle = [OracleMember(path, CAP, name=name, weight=weight) for path, weight, name in named]
        self.prompts, self.rule = prompts, rule

    def compared(self, prompt, strategy, options, **given):
        """The oracle's answer, and the difference of the ensemble's; None if there is none."""
        given = {"max_new_tokens": 8, **given}
        expected = self.rule(self.oracle, **options).answer(prompt, **given)
        ensemble = Ensemble(self.ensemble.config, strategy=strategy, **options)
        return expected, difference(ensemble.generate(prompt, **given), expected)


def team_of(names, tiny_models, rule):
    """A team of small models, which get questions, or of tiny ones, which continue texts."""
    paths = [tiny_models.get(name) or small_models.path(name) for name in names]
    return Team(paths, QUESTIONS if "aspen" in names else TEXTS, rule)
