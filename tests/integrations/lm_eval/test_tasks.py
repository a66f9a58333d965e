"""Tasks of lm-evaluation-harness on an ensemble: a task is a YAML file with a local file of examples."""

from __future__ import annotations

import json
import math

import pytest

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from adafuse_core import ConfigError, Ensemble
from adafuse_integrations.lm_eval import evaluate

QUESTIONS = [
    {"question": "What is the capital of Peru?", "answer": "The capital of Peru is Lima.", "choices": ["Lima", "Rome"]},
    {"question": "Who wrote Faust?", "answer": "Goethe", "choices": ["Homer", "Goethe", "Kafka"]},
    {"question": "What is the currency of Japan?", "answer": "Yen", "choices": ["yen", "euro"]},
]
GENERATION = """
task: local_questions
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "QUESTION"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "?"], max_gen_toks: 12, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOICE = """
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: 0
PREFIX
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble(generation={"max_new_tokens": 30}, pool="linear").load()


@pytest.fixture
def folder(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text(lines)
    return tmp_path


def write_task(folder, text, **replaced):
    for old, new in {"FILE": str(folder / "questions.jsonl"), "PREFIX": "", **replaced}.items():
        text = text.replace(old, new)
    (folder / "task.yaml").write_text(text)


def responses(results, task):
    """`[examples][requests]`, in the order of the examples."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [[each[0] for each in sample["resps"]] for sample in samples]


def loglikelihood(ensemble, prompt, text):
    """Written anew: minus the NLL of the mean of the members' probabilities of the whole text (pool="linear")."""
    (scored,) = ensemble.score(prompt, [text])
    sums = [math.fsum(score.logprobs) for score in scored.scores.values()]
    return math.log(math.fsum(map(math.exp, sums)) / len(sums))


def test_a_generation_task_has_the_answers_of_generate(ensemble, folder):
    write_task(folder, GENERATION, QUESTION="Question: {{question}}\\nAnswer:")
    results = evaluate(ensemble, ["local_questions"], include_path=folder)
    expected = [
        ensemble.generate(f"Question: {row['question']}\nAnswer:", stop=["\n", "?"], max_new_tokens=12).text
        for row in QUESTIONS
    ]
    assert responses(results, "local_questions") == [[text] for text in expected]
    assert results["config"]["adafuse"]["pool"] == "linear"


def test_a_generation_task_with_chat_templates_asks_each_member_with_its_own(ensemble, folder):
    write_task(folder, GENERATION, QUESTION="{{question}}")
    results = evaluate(ensemble, ["local_questions"], include_path=folder, apply_chat_template=True, limit=2)
    asked = [[{"role": "user", "content": row["question"]}] for row in QUESTIONS[:2]]
    expected = [ensemble.generate(messages, stop=["\n", "?"], max_new_tokens=12).text for messages in asked]
    assert responses(results, "local_questions") == [[text] for text in expected]
    assert expected[0] == QUESTIONS[0]["answer"]
    right = [text == row["answer"] for text, row in zip(expected, QUESTIONS, strict=False)]
    assert results["results"]["local_questions"]["exact_match,none"] == sum(right) / 2


def test_a_choice_task_has_the_log_likelihoods_of_score(ensemble, folder):
    write_task(folder, CHOICE)
    results = evaluate(ensemble, ["local_choices"], include_path=folder)
    expected = [
        [loglikelihood(ensemble, f"Question: {row['question']}\nAnswer:", f" {choice}") for choice in row["choices"]]
        for row in QUESTIONS
    ]
    found = responses(results, "local_choices")
    assert [[value for value, _ in row] for row in found] == [pytest.approx(row) for row in expected]
    best = [row.index(max(row)) == 0 for row in expected]
    assert results["results"]["local_choices"]["acc,none"] == sum(best) / len(best)
    per_byte = [
        [value / len(text) for value, text in zip(values, row["choices"], strict=True)]
        for values, row in zip(expected, QUESTIONS, strict=True)
    ]
    best = [row.index(max(row)) == 0 for row in per_byte]
    assert results["results"]["local_choices"]["acc_norm,none"] == sum(best) / len(best)


def test_a_choice_task_with_chat_templates_continues_the_begun_answer(ensemble, folder):
    write_task(folder, CHOICE, PREFIX='gen_prefix: "The answer is"')
    results = evaluate(ensemble, ["local_choices"], include_path=folder, apply_chat_template=True)
    continuing = Ensemble(ensemble.config, generation={"continue_final_message": True})
    expected = [
        [
            loglikelihood(
                continuing,
                [
                    {"role": "user", "content": f"Question: {row['question']}\nAnswer:"},
                    {"role": "assistant", "content": "The answer is"},
                ],
                f" {choice}",
            )
            for choice in row["choices"]
        ]
        for row in QUESTIONS
    ]
    found = responses(results, "local_choices")
    assert [[value for value, _ in row] for row in found] == [pytest.approx(row) for row in expected]


def test_unknown_tasks_folders_and_options_of_the_model_are_refused(ensemble, folder, monkeypatch):
    def without_own_tasks(include_path, include_defaults=False):  # listing them takes ten seconds
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("adafuse_integrations.lm_eval.running.TaskManager", without_own_tasks)
    with pytest.raises(ConfigError, match="unknown tasks: 'no_such_task'"):
        evaluate(ensemble, ["no_such_task"])
    with pytest.raises(ConfigError, match="not a folder"):
        evaluate(ensemble, ["local_questions"], include_path=folder / "absent")
    with pytest.raises(ConfigError, match="evaluate sets itself"):
        evaluate(ensemble, ["local_questions"], model="hf")
    write_task(folder, GENERATION.replace("max_gen_toks: 12", "num_beams: 4"), QUESTION="{{question}}")
    with pytest.raises(ConfigError, match="num_beams=4"):
        evaluate(ensemble, ["local_questions"], include_path=folder)
