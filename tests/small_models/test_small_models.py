"""The shipped models: files, tokenizers, and accuracy on held-out questions."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from adafuse_core import Ensemble, small_models
from training.curriculum.held_out import mixed_questions, skill_prompts
from training.curriculum.tool_use import TOOLS
from training.evaluate import answers

N = 40
MIN_ACCURACY = {  # exact match; measured on more questions it is higher, see the model card
    "fact": 0.85,
    "translation": 0.75,
    "reading": 0.65,
    "tool_call": 0.85,
    "tool_answer": 0.85,
    "small_talk": 0.75,
}
TEXTS = [
    "two  spaces,\n\ttabs\r\n\n    and indentation  ",
    "1984 + 3.14",
    "Grüße, naïve façade ½ €",
    "日本語 中文 한국어 ไทย",
    "👩‍👩‍👧 🇩🇪",
    "def f(x):\n    return x < 3\n",
]


@pytest.fixture(scope="module", params=small_models.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(name):
    return AutoTokenizer.from_pretrained(small_models.path(name))


def test_a_model_has_at_most_ten_megabytes(name):
    assert sum(file.stat().st_size for file in small_models.path(name).iterdir()) <= 10_000_000


def test_the_two_differ_in_architecture_and_vocabulary():
    configs = [json.loads((small_models.path(name) / "config.json").read_text()) for name in small_models.NAMES]
    assert len({config["model_type"] for config in configs}) == 2
    assert len({config["vocab_size"] for config in configs}) == 2


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_the_saved_one_and_lossless(name, tokenizer, text):
    saved = Tokenizer.from_file(str(small_models.path(name) / "tokenizer.json"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == saved.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_the_template_shows_tools_calls_and_results(tokenizer):
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "get_time", "content": "14:05"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    for part in ("Be brief.", "get_weather(city)", '"name": "get_time"', '"city": "Oslo"', "14:05"):
        assert part in text
    assert text.endswith("assistant\n")


@pytest.mark.parametrize("skill", MIN_ACCURACY)
def test_a_skill_reaches_its_accuracy_on_held_out_questions(name, tokenizer, skill):
    model = AutoModelForCausalLM.from_pretrained(small_models.path(name)).eval()
    questions = [question for question in skill_prompts(N, seed=77, member=name) if question.kind == skill]
    with torch.inference_mode():
        given = answers(model, tokenizer, questions)
    right = sum(question.answer == answer for question, answer in zip(questions, given, strict=True))
    assert right / N >= MIN_ACCURACY[skill]


def test_the_ensemble_answers_questions_that_neither_member_can():
    questions = [question for question in mixed_questions(36, seed=8) if question.kind != "fact"]
    ensemble = Ensemble()

    def right(answerer):
        return sum(answerer.generate(q.messages, max_new_tokens=64).text == q.answer for q in questions)

    together = right(ensemble)
    alone = [right(Ensemble(ensemble.config, strategy="single", member=name)) for name in ensemble.names]
    assert together >= 0.6 * len(questions)
    assert max(alone) <= 0.3 * len(questions)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"oak.*aspen, birch"):
        small_models.path("oak")
