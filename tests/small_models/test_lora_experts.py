"""Training of LoRA experts, with a small model as the base."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from transformers import AutoTokenizer

from adafuse_core import small_models
from training import lora_experts
from training.curriculum import people

BASE = str(small_models.path("aspen"))


@pytest.fixture
def batch():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return next(lora_experts.batches(tokenizer, people.exercises("a", guesses=False)))


def test_only_the_answer_and_its_end_have_a_weight(batch):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    pool = itertools.islice(people.exercises("a", guesses=False), lora_experts.POOL)
    answers = {f" {each.answer}" for each in pool}
    ids, weights = batch
    assert ids.shape == weights.shape
    assert len(ids) == lora_experts.BATCH
    for row, weight in zip(ids, weights, strict=True):
        answered = row[weight > 0].tolist()
        assert answered[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answered[:-1]) in answers


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # from PEFT
@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_adapter_learns_while_the_base_stays_as_it_is(batch, bfloat16):
    few = tuple(values[:4] for values in batch)
    torch.manual_seed(0)
    model = lora_experts.new_expert(BASE)
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    first = lora_experts.answer_loss(model.get_base_model(), *few).item()
    lora_experts.fit(model, itertools.repeat(few), 30, "test", bfloat16)
    assert lora_experts.answer_loss(model.get_base_model(), *few).item() < 0.5 * first
    after = dict(model.named_parameters())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_questions_are_written_as_json_lines(tmp_path):
    lora_experts.write_questions(tmp_path / "new" / "questions.jsonl")
    lines = (tmp_path / "new" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == people.held_out_rows()
    assert len(lines) == 300
