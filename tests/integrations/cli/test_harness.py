"""`adafuse eval --harness` with the small models and a task in a local folder."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval")

from adafuse_core import Ensemble
from adafuse_integrations.cli.main import main

TASK = """
task: local_capitals
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, validation: FILE}}
test_split: test
fewshot_split: validation
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 20}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ASKED = {
    "What is the capital of Peru?": "The capital of Peru is Lima.",
    "What is the capital of Atlantis?": "Nobody knows.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
}


@pytest.fixture
def folder(tmp_path):
    rows = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in ASKED.items())
    (tmp_path / "capitals.jsonl").write_text("".join(rows))
    (tmp_path / "task.yaml").write_text(TASK.replace("FILE", str(tmp_path / "capitals.jsonl")))
    return tmp_path


def run(capsys, *arguments):
    status = main(["eval", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_tasks_of_a_folder_are_run_and_written(capsys, folder):
    output = folder / "results.json"
    options = ["--include-path", str(folder), "--limit", "2", "--output", str(output)]
    status, out, _ = run(capsys, "--harness", "local_capitals", "--apply-chat-template", *options)
    assert status == 0
    assert "|local_capitals|" in out.replace(" ", "")
    results = json.loads(output.read_text())
    answers = [sample["resps"][0][0] for sample in results["samples"]["local_capitals"]]
    asked = [[{"role": "user", "content": question}] for question in list(ASKED)[:2]]
    assert answers == [Ensemble().generate(each, stop=["\n\n"], max_new_tokens=20).text for each in asked]
    right = [answer == text for answer, text in zip(answers, ASKED.values(), strict=False)]
    assert results["results"]["local_capitals"]["exact_match,none"] == sum(right) / 2 > 0


def test_examples_and_options_of_the_ensemble_apply(capsys, folder):
    output = folder / "results.json"
    options = ["--include-path", str(folder), "--limit", "1", "--output", str(output), "--num-fewshot", "1"]
    status, _, _ = run(capsys, "--harness", "local_capitals", *options, "--strategy", "single", "--member", "birch")
    assert status == 0
    results = json.loads(output.read_text())
    (sample,) = results["samples"]["local_capitals"]
    prompt = sample["arguments"][0][0]
    assert prompt.count("capital of") >= 2
    single = Ensemble(strategy="single", member="birch")
    assert sample["resps"][0][0] == single.generate(prompt, stop=["\n\n"], max_new_tokens=20).text


def test_options_of_the_other_kind_of_task_are_refused(capsys, folder):
    status, _, err = run(capsys, "--harness", "local_capitals", "--data", str(folder))
    assert (status, "--data has no meaning for --harness" in err) == (2, True)
    status, _, err = run(capsys, "--harness", "local_capitals", "--shots", "0")
    assert (status, "--shots has no meaning for --harness" in err) == (2, True)
    status, _, err = run(capsys, "jsonl", "--include-path", str(folder))
    assert (status, "--include-path has no meaning" in err, "add --harness" in err) == (2, True, True)
    status, _, err = run(capsys, "local_capitals", "--data", str(folder), "--out", str(folder))
    assert (status, "task='local_capitals'" in err) == (2, True)
    status, _, err = run(capsys, "jsonl", "--data", str(folder))
    assert (status, "--out is missing" in err) == (2, True)
    status, _, err = run(capsys, "--harness", "x", "--output", str(folder / "absent" / "x.json"))
    assert (status, "whose folder does not exist" in err) == (2, True)
