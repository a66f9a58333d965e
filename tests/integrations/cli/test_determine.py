"""`adafuse determine` with the small models."""

from __future__ import annotations

import json

import pytest

from adafuse_core import Ensemble
from adafuse_integrations.cli import determine as command
from adafuse_integrations.cli.main import main
from adafuse_integrations.cli.questions import questions

COMPOSED = [question for question in questions("quiz") if question.kind == "composed"][:7]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "facts.jsonl"
    rows = [{"question": question.question, "answer": question.answer} for question in COMPOSED]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_ensemble_that_gains_is_advised_and_a_stopped_run_continues(data, tmp_path, capsys, monkeypatch):
    order = ["determine", data, "--shots", "0", "--out", "advised.yaml"]
    play = command._play

    def stopped(evaluation, journal, ensemble):
        for _, _ in zip(range(4), evaluation.play(journal), strict=False):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_play", stopped)
    assert main(order) == 130
    assert "of 21 answers are kept; the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(command, "_play", play)
    assert main(order) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Use aspen + birch together. On 7 questions it scores" in out
    assert "written: advised.yaml" in out
    assert Ensemble.from_config("advised.yaml").config == Ensemble().config
    assert (tmp_path / "facts.determine").is_dir()


def test_too_few_questions_advise_one_member(data, capsys):
    monkey = pytest.MonkeyPatch()
    assert main(["determine", data, "--shots", "0", "--limit", "2", "--json", "--out", "one.yaml"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["advised"] == ["aspen"]
    assert (found["questions"], found["metric"], found["form"]) == (2, "exact", "chat")
    alone = Ensemble.from_config("one.yaml")
    assert (alone.names, alone.config.strategy.name) == (("aspen",), "single")
    monkey.setattr(command, "load", lambda ensemble: pytest.fail("loaded"))
    try:
        assert main(["determine", data, "--shots", "0", "--limit", "2"]) == 0  # all answers are in the folder
    finally:
        monkey.undo()
    assert main(["determine", data, "--shots", "0", "--limit", "2", "--max-new-tokens", "5"]) == 2
    assert "generation.max_new_tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["none.jsonl"], "none.jsonl"),
        (["facts.jsonl", "--offset", "7"], "no question is left"),
        (["facts.jsonl", "--models", "small:aspen"], "at least two members"),
        (["facts.jsonl", "--strategy", "single"], "at least two members"),
        (["facts.jsonl", "--tau", "2"], "tau=2.0"),
        (["facts.jsonl", "--out", "no/folder.yaml"], "can't write --out"),
        (["facts.jsonl", "--out", "."], "can't write --out"),
    ],
)
def test_wrong_options_are_refused_before_models_are_loaded(data, capsys, monkeypatch, options, complaint):
    monkeypatch.setattr(command, "load", lambda ensemble: pytest.fail("loaded"))
    assert main(["determine", *options]) == 2
    assert complaint in capsys.readouterr().err
