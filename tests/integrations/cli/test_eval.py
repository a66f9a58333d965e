"""`adafuse eval` with the small models, run inside the test process."""

from __future__ import annotations

import json

import pytest

from adafuse_core import ConfigError
from adafuse_core.evaluation.runner import Evaluation
from adafuse_integrations.cli.eval import parsed_system
from adafuse_integrations.cli.main import main

ASKED = {
    "What is the capital of Peru?": "The capital of Peru is Lima.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Kenya?": "The capital of Kenya is Nairobi.",
    "What is the currency of Japan?": "The currency of Japan is the yen.",
    "What is the currency of Peru?": "The currency of Peru is the sol.",
    "What is the capital of Atlantis?": ["nobody knows", "unknown"],
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ASKED.items()))
    return path


def run(capsys, data, *arguments, task="jsonl"):
    """Exit status, standard output and standard error."""
    status = main(["eval", task, "--data", str(data), "--out", str(data.parent / "out"), "--shots", "0", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def found(out):
    return json.loads(out)["tasks"][0]


def test_tables_report_and_files(capsys, data):
    status, out, _ = run(capsys, data, "--system", "paper: strategy=adafuse")
    assert status == 0
    assert "questions of a file: 6 questions, chat prompts with 0 examples" in out
    for name in ("aspen", "birch", "ensemble", "paper", "exact match", "tokens read/", "1:"):
        assert name in out
    folder = data.parent / "out"
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert len((folder / "jsonl" / "answers.jsonl").read_text().splitlines()) == 6 * 4
    results = json.loads((folder / "jsonl" / "results.json").read_text())
    scores = {name: system["scores"]["exact"]["value"] for name, system in results["systems"].items()}
    assert scores["ensemble"] >= max(scores["aspen"], scores["birch"]) > 0


def test_json_is_the_same_after_a_stop_and_the_next_start(capsys, data, monkeypatch):
    play = Evaluation.play

    def stopped(self, journal):
        for count, answer in enumerate(play(self, journal)):
            yield answer
            if count == 4:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "play", stopped)
        status, out, err = run(capsys, data, "--json", "--limit", "3")
    assert (status, out) == (130, "")
    assert "stopped: 5 of 9 answers are kept; the same command continues" in err
    resumed = found(run(capsys, data, "--json", "--limit", "3")[1])
    whole = found(run(capsys, data, "--json", "--limit", "3", "--restart")[1])
    for results in (resumed, whole):
        for system in results["systems"].values():
            del system["cost"]
    assert resumed == whole
    assert resumed["questions"] == 3


def test_options_reach_the_questions_the_prompts_and_the_systems(capsys, data):
    options = [
        "--no-singles",
        "--offset",
        "1",
        "--limit",
        "2",
        "--form",
        "raw",
        "--max-new-tokens",
        "3",
        "--tau",
        "0.4",
    ]
    status, out, _ = run(capsys, data, "--json", *options, "--metric", "numeric", "--no-trace", "--isolate")
    results = found(out)
    assert status == 0
    assert list(results["systems"]) == ["ensemble"]
    assert (results["questions"], results["best"]) == (2, None)
    facts = results["facts"]
    assert (facts["form"], facts["isolate"], facts["generation"]["max_new_tokens"]) == ("raw", True, 3)
    assert facts["systems"]["ensemble"]["tau"] == 0.4
    assert results["metrics"] == ["exact", "f1", "lenient", "numeric"]
    lines = (data.parent / "out" / "jsonl" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in lines] == [1, 2]
    assert all(json.loads(line)["trace"] is None for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "nonsense"], "expected 'NAME: OPTION=VALUE, OPTION=VALUE'"),
        (["--system", "other: tua=0.5"], "unknown ensemble option 'tua'"),
        (["--system", "aspen: tau=0.5"], "two systems are named 'aspen'"),
        (["--system", "x: tau=0.5", "--system", "x: tau=0.7"], "two systems are named 'x'"),
        (["--system", "\udcff: tau=0.5"], "not valid Unicode"),
        (["--stop", "\udcff"], "not valid Unicode"),
        (["--isolate", "--cache-namespace", "x"], "cache_namespace"),
        (["--metric", "rouge"], "got metrics='rouge'"),
        (["--shots", "9"], "has 3 examples"),
        (["--offset", "6"], "no question is left"),
        (["--limit", "0"], "limit=0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(capsys, data, arguments, message):
    status, _, err = run(capsys, data, *arguments)
    assert status == 2
    assert message in err
    assert not (data.parent / "out").exists()


def test_one_file_for_two_tasks_is_refused(capsys, data):
    status = main(["eval", "nq", "squad", "--data", str(data), "--out", str(data.parent / "out")])
    assert status == 2
    assert "one file for 2 tasks" in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(capsys, data):
    assert run(capsys, data, "--limit", "1")[0] == 0
    status, _, err = run(capsys, data, "--limit", "1", "--tau", "0.1")
    assert status == 2
    assert "differs in: systems.ensemble.tau" in err
    assert run(capsys, data, "--limit", "1", "--tau", "0.1", "--restart")[0] == 0


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a: scoring=byte", {"scoring": "byte"}),
        ("a : tau=0.5, max-words=1", {"tau": 0.5, "max_words": 1}),
        ("a: speculation=off", {"speculation": "off"}),  # not YAML's False
        ("a: prefix_cache=false", {"prefix_cache": False}),
        ("a: strategy=single, member=birch", {"strategy": "single", "member": "birch"}),
        ("a: members=[x, {model: y, weight: 2}], tau=1", {"members": ["x", {"model": "y", "weight": 2}], "tau": 1}),
        ("a: generation={temperature: 0.5, seed: 1}", {"generation": {"temperature": 0.5, "seed": 1}}),
    ],
)
def test_systems_are_read_from_text(text, options):
    assert parsed_system(text) == ("a", options)


@pytest.mark.parametrize(
    "text", ["a", "a:", ": tau=1", "a: tau", "a: =1", "a: members=[", "a: tau, x=1", "a: tau=1, tau=0.5"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ConfigError, match="got --system"):
        parsed_system(text)
