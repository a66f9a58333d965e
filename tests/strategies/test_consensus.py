"""Consensus: hand-made rounds with an outlier, and the rounds of a plain implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafuse_core import ConfigError, Ensemble, ScriptedMember
from adafuse_core.rounds import Score
from adafuse_core.strategies.consensus import Consensus, ConsensusFusion, distance, log_softmax, outlier
from tests.oracle import OracleEnsemble, fused
from tests.strategies.bigrams import BigramMember
from tests.strategies.teams import PROPERTY, team_of


def members(*chances):
    """Members that write "a" with the given probabilities, and else "b"."""
    return [BigramMember(f"m{at}", {"": {"a": chance, "b": 1 - chance}}) for at, chance in enumerate(chances)]


def test_the_member_that_disagrees_has_no_vote():
    everyone = members(0.7, 0.16, 0.6)
    assert Ensemble(members=everyone).generate("go").text == " b"  # 0.7 * 0.16 * 0.6 < 0.3 * 0.84 * 0.4
    played = Ensemble(members=everyone, strategy="consensus").generate("go").rounds[0]
    assert played.fused == pytest.approx((-math.log(0.7 * 0.6) / 2, -math.log(0.3 * 0.4) / 2))
    assert played.span.text == " a"
    assert [len(row) for row in played.values] == [3, 3]  # the trace has all votes
    assert played.candidates[1].proposers == ("m0", "m1", "m2")  # and the outlier proposes candidates


def test_a_linear_pool_averages_the_probabilities_of_the_others():
    strategy = Consensus(max_words=1, tau=1.0, scoring="sum", pool="linear")
    played = Ensemble(members=members(0.8, 0.05, 0.7), strategy=strategy).generate("go").rounds[0]
    assert played.fused == pytest.approx((-math.log(0.75), -math.log(0.25)))


def test_the_weights_of_the_others_count():
    voters = members(0.8, 0.16, 0.55)
    voters[2].weight = 9.0
    played = Ensemble(members=voters, strategy="consensus").generate("go").rounds[0]
    assert played.fused[0] == pytest.approx(-(math.log(0.8) + 9 * math.log(0.55)) / 10)


def rows(*distributions):
    """Values `[candidates][members]` of members with these distributions."""
    return [[-math.log(chance) for chance in chances] for chances in zip(*distributions, strict=True)]


def test_nobody_is_left_out_if_several_are_equally_far():
    assert outlier(rows((0.7, 0.3), (0.7, 0.3), (0.7, 0.3))) is None
    assert outlier(rows((0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8))) is None
    assert outlier(rows((0.7, 0.3), (0.7, 0.3), (0.3, 0.7), (0.3, 0.7))) is None
    assert outlier(rows((0.7, 0.3), (0.7, 0.3), (0.3, 0.7))) == 2
    assert outlier(rows((0.9, 0.1), (0.5, 0.5), (0.6, 0.4))) == 0
    scores = [
        [Score(member="m", logprobs=(-nll,), words=1, bytes=1, word_ends=(1,)) for nll in row]
        for row in rows((0.7, 0.3), (0.7, 0.3))
    ]
    assert ConsensusFusion().fuse_all(scores, [1, 1]) == pytest.approx((-math.log(0.7), -math.log(0.3)))


DISTRIBUTION = st.lists(st.floats(0.0, 30.0), min_size=3, max_size=3)


@given(st.lists(DISTRIBUTION, min_size=3, max_size=5), st.floats(-5.0, 5.0))
def test_the_outlier_depends_on_distributions_alone(values, shift):
    table = list(zip(*values, strict=True))
    moved = list(zip([value + shift for value in values[0]], *values[1:], strict=True))
    assert outlier(moved) == outlier(table)
    chances = [[math.exp(log) for log in log_softmax(row)] for row in values]
    assert all(sum(row) == pytest.approx(1) for row in chances)
    assert distance(*map(log_softmax, values[:2])) == pytest.approx(divergence(chances[0], chances[1]))


def divergence(p, q):
    """Σ p ln(p/q) + Σ q ln(q/p)."""
    pairs = list(zip(p, q, strict=True))
    return sum(a * math.log(a / b) for a, b in pairs) + sum(b * math.log(b / a) for a, b in pairs)


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_fewer_than_three_members_are_refused(names):
    with pytest.raises(ConfigError, match=rf"needs at least 3 members, got {len(names)}: {', '.join(names)}") as caught:
        Ensemble(members=[ScriptedMember(name, "x") for name in names], strategy="consensus")
    assert "add a member" in caught.value.hint


def test_the_anchor_must_be_a_member():
    with pytest.raises(ConfigError, match="anchor"):
        Ensemble(members=members(0.8, 0.05, 0.7), strategy=Consensus(anchor="x"))
    strategy = Consensus(anchor="m1", anchor_margin=math.inf)
    assert Ensemble(members=members(0.8, 0.05, 0.7), strategy=strategy).generate("go").text == " b"


class OracleConsensus(OracleEnsemble):
    """The plain implementation, by the oracle's members."""

    def scored(self, played):
        played = super().scored(played)
        shares = [[math.exp(-row[at]) for row in played.values] for at in range(len(self.members))]
        spread = [[share / sum(each) for share in each] for each in shares]
        far = [sum(divergence(one, other) for other in spread) for one in spread]
        best = [at for at, total in enumerate(far) if total < max(far) * (1 - 1e-9) - 1e-9]
        kept = best if len(best) == len(far) - 1 else range(len(far))
        weights = [self.members[at].weight * self.share(at) for at in kept]
        pooled = (fused([row[at] for at in kept], weights, *self.pool) for row in played.values)
        return replace(played, fused=tuple(pooled))


RULES = [
    {"tau": 0.7, "max_words": 2, "branches": 3},
    {"tau": 0.95, "max_words": 1, "branches": 2, "scoring": "sum", "pool": "linear"},
    {"tau": 0.5, "max_words": 3, "branches": 2, "look_ahead": 3, "weighting": "agreement"},
]


@pytest.mark.parametrize(
    "names", [["aspen", "birch", "bytes"], ["bytes", "pieces", "modern", "characters"]], ids="+".join
)
def test_rounds_equal_those_of_the_plain_implementation(tiny_models, names, count):
    team = team_of(names, tiny_models, OracleConsensus)
    choices, against, compared = 0, 0, 0
    for number, (rule, prompt) in enumerate(zip(RULES, team.prompts, strict=True)):
        expected, problem = team.compared(prompt, "consensus", rule, logprobs=number % 2 == 0)
        assert not problem, (rule, prompt, problem)
        choices += sum(len(played.candidates) > 1 for played in expected.rounds)
        means = [[math.fsum(row) / len(row) for row in played.values] for played in expected.rounds]
        against += sum(
            len(row) > 1 and row.index(min(row)) != each.chosen
            for row, each in zip(means, expected.rounds, strict=True)
        )
        compared += 1
    assert choices >= 4
    assert against >= 1  # rounds that the mean of all members would decide otherwise
    count(PROPERTY, compared, at_least=3)
