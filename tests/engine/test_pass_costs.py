"""How many guesses a pass may read follows from the measured cost of a token."""

from __future__ import annotations

import itertools
import random

import pytest
from transformers import AutoModelForCausalLM

from adafuse_core import Ensemble
from adafuse_core.engine.forward import Model
from adafuse_core.engine.pass_costs import PassCosts
from tests import tiny


def measured(seconds, passes=40):
    """Costs after passes over 1 to 8 tokens."""
    costs = PassCosts()
    for tokens in itertools.islice(itertools.cycle(range(1, 9)), passes):
        costs.add(tokens, seconds(tokens))
    return costs


@pytest.mark.parametrize(
    ("per_token", "guesses"), [(0.0, 12), (-0.001, 12), (0.001, 12), (0.05, 5), (0.1, 2), (0.26, 0)]
)
def test_the_dearer_a_token_the_fewer_guesses(per_token, guesses):
    assert abs(measured(lambda tokens: 1 + per_token * (tokens - 1)).affordable_guesses() - guesses) <= 1


def test_a_few_guesses_before_anything_is_known():
    costs = PassCosts()
    before = costs.affordable_guesses()
    for _ in range(50):
        costs.add(1, 0.1)  # passes of one length say nothing about the cost of a token
    assert costs.affordable_guesses() == before > 0


def test_prompts_do_not_count():
    costs = measured(lambda _: 1.0)
    costs.add(500, 100.0)
    assert costs.affordable_guesses() == 12


def test_a_busy_machine_does_not_count():
    draw = random.Random(0)
    undisturbed = measured(lambda tokens: 1 + 0.05 * tokens)
    disturbed = measured(lambda tokens: (1 + 0.05 * tokens) * draw.choice((1, 1, 1, 1.5, 2)), passes=64)
    assert abs(disturbed.affordable_guesses() - undisturbed.affordable_guesses()) <= 1


def test_passes_with_few_logits_do_not_count():
    model = Model(AutoModelForCausalLM.from_config(tiny.llama(99)))
    for keep in range(1, 9):
        model.forward_at([[5] * 20], range(keep))
    assert model.costs.affordable_guesses() == PassCosts().affordable_guesses()
    assert not model.costs._passes
    model.forward_at([[5] * 20], range(20))
    assert len(model.costs._passes) == 1


def test_a_change_is_noticed():
    costs = measured(lambda _: 1.0)
    for tokens in range(1, 9):
        costs.add(tokens, float(tokens))
    many = costs.affordable_guesses()
    for _ in range(10):
        for tokens in range(1, 9):
            costs.add(tokens, float(tokens))
    assert costs.affordable_guesses() < many or many == 0


@pytest.mark.parametrize("kind", ["tree", "fork", "prefill"])
def test_guesses_never_cost_a_pass(kind, monkeypatch):
    passes = {}
    for guesses in (0, 12):
        monkeypatch.setattr(PassCosts, "affordable_guesses", lambda _, count=guesses: count)
        with Ensemble.from_pretrained(kv_store=kind, prefix_cache=False) as ensemble:
            models = [member.backend.model for member in ensemble.members]
            before = sum(model.forwards for model in models)
            answer = ensemble.generate([{"role": "user", "content": "What is the capital of Peru?"}], max_new_tokens=24)
            passes[guesses] = sum(model.forwards for model in models) - before, answer.text
    assert passes[12][0] <= passes[0][0]
    assert passes[12][1] == passes[0][1]
