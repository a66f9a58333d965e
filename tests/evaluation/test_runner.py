"""The runner with scripted members: what is recorded, resuming, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adafuse_core import ConfigError, Ensemble, MemberError, ScriptedMember
from adafuse_core.evaluation.journal import ANSWERS
from adafuse_core.evaluation.questions import Selection
from adafuse_core.evaluation.runner import Evaluation
from adafuse_core.evaluation.systems import System, systems_of
from tests.evaluation.scripted_run import evaluation, members, write_data

ROOT = Path(__file__).parent.parent.parent
TIMES = ("seconds", "cpu_seconds", "ms_per_word", "cpu_ms_per_word")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "questions.jsonl")


def table(results):
    """The results without measured times and notes on the machine."""
    values = results.to_dict()
    del values["notes"]
    for system in values["systems"].values():
        for name in TIMES:
            del system["cost"][name]
    return values


def lines(folder):
    return (folder / ANSWERS).read_bytes().splitlines(keepends=True)


def test_every_system_answers_every_question(data, tmp_path):
    given = []
    results = evaluation(data).run(tmp_path / "run", on_answer=given.append)
    assert [(answer.label, answer.system) for answer in given] == [
        (str(label), system) for label in range(1, 5) for system in ("first", "second", "ensemble")
    ]
    assert [answer.text for answer in given if answer.system == "second"] == [
        " no idea",
        " the Nile",
        " gold",
        " seven",
    ]
    scores = {system.name: system.scores["exact"].value for system in results.systems}
    assert scores["first"] == 50.0
    assert scores["second"] == 75.0
    assert results.best == "second"
    assert results.oracle == 100.0


def test_a_record_has_text_metrics_and_costs(data, tmp_path):
    evaluation(data, member_options={"margin": 0.5}).run(tmp_path / "run")
    first, _, together = (json.loads(line) for line in lines(tmp_path / "run")[:3])
    assert (first["text"], first["metrics"]) == (" Lima", {"exact": 100.0, "f1": 100.0, "lenient": 100.0})
    assert (first["words"], first["rounds"], first["round_words"]) == (1, 1, {"1": 1})
    assert first["confident_rounds"] is None  # this strategy has no tau
    assert (together["margin_rounds"], together["confident_rounds"]) == (together["rounds"], 0)
    assert together["seconds"] > 0
    assert set(together["prompt_tokens"]) == {"first", "second"}
    assert together["trace"][0]["candidates"]


def test_confident_rounds_have_margins_of_at_least_tau_in_all_members(data, tmp_path):
    given = []
    further = {"strict": {"tau": 1.0, "beams": 1}}
    evaluation(data, further, member_options={"margin": 0.8}).run(tmp_path / "run", on_answer=given.append)
    by_system = {answer.system: answer for answer in given if answer.label == "2"}
    assert by_system["ensemble"].confident_rounds == by_system["ensemble"].margin_rounds > 0
    assert by_system["strict"].confident_rounds == 0


def test_prompts_are_read_before_the_clock_starts_unless_systems_are_isolated(data, tmp_path):
    shared, isolated = evaluation(data), evaluation(data, isolate=True)
    shared.run(tmp_path / "shared")
    isolated.run(tmp_path / "isolated")
    opened = [len(each.systems[-1].ensemble.members[0].prompts) for each in (shared, isolated)]
    assert opened == [4 * 3, 4 * 2]  # alone and together, and once to read the prompt


@pytest.mark.parametrize("batch_size", [2, 3, 9])
def test_questions_may_be_answered_together(data, tmp_path, batch_size):
    expected, together = (evaluation(data, batch_size=size).run(tmp_path / str(size)) for size in (1, batch_size))
    assert table(together) == {**table(expected), "facts": {**expected.facts, "batch_size": batch_size}}
    answers = [json.loads(line) for line in lines(tmp_path / str(batch_size))]
    first = [answer for answer in answers[:batch_size] if answer["system"] == "first"]
    assert len(first) == min(batch_size, 4)
    assert len({answer["seconds"] for answer in first}) == 1


def test_a_batch_is_resumed_with_what_it_lacks(data, tmp_path):
    expected = table(evaluation(data, batch_size=3).run(tmp_path / "run"))
    whole = lines(tmp_path / "run")
    (tmp_path / "run" / ANSWERS).write_bytes(b"".join(whole[:1] + whole[2:5]))
    given = []
    assert table(evaluation(data, batch_size=3).run(tmp_path / "run", on_answer=given.append)) == expected
    assert len(given) == 8


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", None, True])
def test_a_wrong_batch_size_is_refused(data, batch_size):
    with pytest.raises(ConfigError, match="batch_size"):
        evaluation(data, batch_size=batch_size)


def test_a_killed_run_is_resumed_and_gives_the_same_table(data, tmp_path):
    expected = table(evaluation(data).run(tmp_path / "whole"))
    command = [sys.executable, "-m", "tests.evaluation.scripted_run", str(data), str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT)
    answers = tmp_path / "killed" / ANSWERS
    deadline = time.monotonic() + 60
    while not answers.exists() or answers.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = lines(tmp_path / "killed")
    assert 4 <= len(kept) < 12
    given = []
    resumed = evaluation(data).run(tmp_path / "killed", on_answer=given.append)
    assert table(resumed) == expected
    complete = [line for line in kept if line.endswith(b"\n")]
    assert len(given) == 12 - len(complete)
    assert lines(tmp_path / "killed")[: len(complete)] == complete


def test_a_half_written_last_line_is_dropped(data, tmp_path):
    expected = table(evaluation(data).run(tmp_path / "run"))
    whole = (tmp_path / "run" / ANSWERS).read_bytes()
    kept = b"".join(lines(tmp_path / "run")[:7])
    for rest in (b"", b'{"place": 2, "la', whole[len(kept) :].splitlines()[0]):  # the last one lacks only its newline
        (tmp_path / "run" / ANSWERS).write_bytes(kept + rest)
        given = []
        assert table(evaluation(data).run(tmp_path / "run", on_answer=given.append)) == expected
        assert len(given) == 5
        assert len(lines(tmp_path / "run")) == 12


def test_a_finished_run_answers_nothing_again(data, tmp_path):
    expected = table(evaluation(data).run(tmp_path / "run"))
    again = evaluation(data)
    assert table(again.run(tmp_path / "run")) == expected
    assert not again.systems[-1].ensemble.members[0].prompts


def test_a_run_can_be_extended_and_only_selected_questions_count(data, tmp_path):
    expected = table(evaluation(data).run(tmp_path / "whole"))
    half = evaluation(data, selection=Selection(limit=2)).run(tmp_path / "run")
    assert [question.label for question in half.questions] == ["1", "2"]
    given = []
    assert table(evaluation(data).run(tmp_path / "run", on_answer=given.append)) == expected
    assert len(given) == 6
    other = Selection(limit=1, shuffle=5)
    results = evaluation(data, selection=other).run(tmp_path / "run", on_answer=given.append)
    assert (len(results.questions), len(given)) == (1, 6)
    assert results.notes["selection"] == {"limit": 1, "offset": 0, "shuffle": 5}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"further": {"more": {"tau": 0.5}}}, "systems.more"),
        ({"shots": 1}, "shots"),
        ({"generation": {"max_new_tokens": 3}}, "generation.max_new_tokens"),
        ({"isolate": True}, "isolate"),
        ({"batch_size": 2}, "batch_size"),
        ({"metrics": ["numeric"]}, "metrics"),
    ],
)
def test_other_settings_are_refused_until_the_run_is_restarted(data, tmp_path, change, named):
    evaluation(data).run(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"differs in: {named}") as error:
        evaluation(data, **change).run(tmp_path / "run")
    assert "--restart" in error.value.hint
    assert len(lines(tmp_path / "run")) == 12
    evaluation(data, **change).run(tmp_path / "run", restart=True)


def test_a_setting_that_an_earlier_version_did_not_have_is_named(data, tmp_path):
    evaluation(data).run(tmp_path / "run")
    run = tmp_path / "run" / "run.json"
    values = json.loads(run.read_text())
    values["facts"]["systems"]["ensemble"]["new"] = None
    run.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"differs in: systems\.ensemble\.new\n"):
        evaluation(data).run(tmp_path / "run")


def test_other_data_is_refused(data, tmp_path):
    evaluation(data).run(tmp_path / "run")
    data.write_text(data.read_text().replace("Lima", "Quito"))
    with pytest.raises(ConfigError, match="differs in: data"):
        evaluation(data).run(tmp_path / "run")


def test_a_damaged_line_is_an_error_that_names_it(data, tmp_path):
    evaluation(data).run(tmp_path / "run")
    kept = lines(tmp_path / "run")
    (tmp_path / "run" / ANSWERS).write_bytes(kept[0] + b"{\n" + kept[2])
    with pytest.raises(ConfigError, match=r"damaged \(line 2\)"):
        evaluation(data).run(tmp_path / "run")


def test_a_folder_in_use_is_refused(data, tmp_path):
    running = evaluation(data)
    with running.journal(tmp_path / "run"), pytest.raises(ConfigError, match="another process"):
        evaluation(data).run(tmp_path / "run")
    evaluation(data).run(tmp_path / "run")


def test_traces_are_read_from_the_file(data, tmp_path):
    results = evaluation(data).run(tmp_path / "run")
    recorded = [json.loads(line) for line in lines(tmp_path / "run")]
    assert all(answer.trace is None for answer in results.answers.values())
    for row in recorded:
        assert results.traces((row["place"], row["system"])) == row["trace"]
    without = evaluation(data, trace=False).run(tmp_path / "other")
    assert without.traces((0, "ensemble")) is None


def test_a_failing_member_ends_the_run_and_what_was_answered_is_kept(data, tmp_path):
    broken = evaluation(data, member_options={"fail_after": 0})
    with pytest.raises(MemberError):
        broken.run(tmp_path / "run")
    assert evaluation(data).run(tmp_path / "run").total == 4


def test_a_failing_member_costs_no_other_answer_of_its_batch(data, tmp_path):
    def fails_once(prompt):
        if "metal Au?" in prompt.rsplit("Question: ", 1)[1]:
            raise ValueError("out of order")
        return " x"

    ensemble = Ensemble(members=[ScriptedMember("odd", fails_once, chat=False)])
    broken = Evaluation(
        systems=[System(name="s", ensemble=ensemble)], task="jsonl", data=data, batch_size=4, isolate=True
    )
    given = []
    with pytest.raises(Exception, match="out of order"):
        broken.run(tmp_path / "run", on_answer=given.append)
    assert [answer.label for answer in given] == ["1", "2", "4"]
    assert len(lines(tmp_path / "run")) == 3


def test_a_question_that_is_too_long_for_a_member_counts_as_wrong(data, tmp_path):
    first, second = members()
    short = ScriptedMember("first", " gold", chat=False, context_window=20)
    ensemble = Ensemble(members=[short, second])
    results = Evaluation(systems=systems_of(ensemble), task="jsonl", data=data).run(tmp_path / "run")
    refused = {system.name: system.cost.refused for system in results.systems}
    assert refused == {"first": 4, "second": 0, "ensemble": 4}
    answer = results.answers[0, "first"]
    assert (answer.reason, answer.text, answer.metrics["exact"]) == ("refused", "", 0.0)
    assert "context window" in answer.error
    assert first.prompts == []


def test_chat_is_used_if_all_members_have_templates(data):
    asked = []
    chat = [ScriptedMember(name, lambda prompt: asked.append(prompt) or "x") for name in "ab"]
    talk = Evaluation(systems=[System(name="s", ensemble=Ensemble(members=chat))], task="jsonl", data=data)
    assert talk.used_form == "chat"
    assert evaluation(data).used_form == "raw"
    with pytest.raises(ConfigError, match="no chat template"):
        _ = evaluation(data, form="chat").used_form


def test_raw_answers_are_one_line(data, tmp_path):
    loose = [ScriptedMember("loose", " Lima\nQuestion: next", chat=False)]
    given = []
    systems = [System(name="s", ensemble=Ensemble(members=loose))]
    Evaluation(systems=systems, task="jsonl", data=data).run(tmp_path / "run", on_answer=given.append)
    assert [answer.text for answer in given] == [" Lima"] * 4


def test_generation_options_of_the_evaluation_replace_those_of_the_task(data, tmp_path):
    given = []
    evaluation(data, generation={"max_new_tokens": 1}).run(tmp_path / "run", on_answer=given.append)
    assert {answer.text for answer in given if answer.label == "2" and answer.system == "second"} == {" the"}
    assert {answer.reason for answer in given if answer.label == "2"} == {"length"}


def test_options_that_would_be_ignored_are_refused(data):
    ensemble = Ensemble(members=members(), generation={"stop": "x"})
    with pytest.raises(ConfigError, match="which the task sets, too"):
        Evaluation(systems=[System(name="s", ensemble=ensemble)], task="jsonl", data=data)
    kept = Evaluation(systems=[System(name="s", ensemble=ensemble)], task="jsonl", data=data, generation={"stop": "y"})
    assert kept.generation == {"stop": "y"}  # replaces both
    named = Ensemble(members=members(), generation={"cache_namespace": "x"})
    with pytest.raises(ConfigError, match="cache_namespace"):
        Evaluation(systems=[System(name="s", ensemble=named)], task="jsonl", data=data, isolate=True)
    with pytest.raises(ConfigError, match="one candidate per round"):
        evaluation(data, generation={"temperature": 1.0})
    with pytest.raises(ConfigError, match="cache_namespace"):
        evaluation(data, isolate=True, generation={"cache_namespace": "x"})
    with pytest.raises(ConfigError, match="task='nothing'"):
        Evaluation(systems=[System(name="s", ensemble=ensemble)], task="nothing", data=data)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"selection": {"limit": 1}}, "selection="),
        ({"selection": None}, "selection=None"),
        ({"task": None}, "task=None"),
        ({"generation": None}, "generation=None"),
        ({"trace": "no"}, "trace='no'"),
        ({"isolate": 1}, "isolate=1"),
        ({"systems": []}, "systems="),
        ({"systems": ["x"]}, "systems="),
    ],
)
def test_options_of_another_type_are_refused(data, options, problem):
    systems = systems_of(Ensemble(members=members()))
    with pytest.raises(ConfigError, match=problem):
        Evaluation(**{"systems": systems, "task": "jsonl", "data": data, **options})


def test_files_are_json_for_every_reader(data, tmp_path):
    ensemble = Ensemble(members=members(), strategy="adafuse", anchor="first", anchor_margin=math.inf)
    systems = systems_of(ensemble, singles=False)
    for _ in range(2):  # the second one continues the first
        Evaluation(systems=systems, task="jsonl", data=data).run(tmp_path / "run")

    def refuse(name):
        pytest.fail(f"{name} is not JSON")

    for name in ("run.json", "results.json"):
        json.loads((tmp_path / "run" / name).read_text(), parse_constant=refuse)


def test_the_papers_rule_can_be_a_system(data, tmp_path):
    asked = evaluation(data, {"paper": {"strategy": "adafuse"}})
    results = asked.run(tmp_path / "run")
    assert [system.name for system in results.systems] == ["first", "second", "ensemble", "paper"]
    assert [system.ensemble.config.strategy.name for system in asked.systems[2:]] == ["beam", "adafuse"]


def test_members_alone_do_not_sample(data):
    ensemble = Ensemble(members=members(), on_member_failure="drop", generation={"temperature": 1.0, "seed": 3})
    alone, _, together = systems_of(ensemble)
    assert alone.ensemble.config.generation.temperature == 0.0
    assert together.ensemble.config.generation.temperature == 1.0


def test_systems_share_members_and_have_different_names():
    ensemble = Ensemble(members=members())
    systems = systems_of(ensemble, {"bytes": {"scoring": "byte", "pool_over": "span"}})
    assert [system.name for system in systems] == ["first", "second", "ensemble", "bytes"]
    assert [system.is_single for system in systems] == [True, True, False, False]
    assert [system.members for system in systems] == [("first",), ("second",)] + 2 * [("first", "second")]
    assert systems[3].ensemble.members == ensemble.members
    with pytest.raises(ConfigError, match="two systems are named 'first'"):
        systems_of(ensemble, {"first": {"tau": 0.5}})
    with pytest.raises(ConfigError, match="unknown ensemble option"):
        systems_of(ensemble, {"other": {"tua": 0.5}})
