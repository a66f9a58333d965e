"""Members and pairs on a sample of questions, from the systems to the advised config."""

from __future__ import annotations

import json

import pytest

from adafuse_core import ConfigError, Ensemble, MemberConfig, ScriptedMember
from adafuse_core.evaluation.determine import advised, determine, every_system, marks_of, measurement, part
from adafuse_core.evaluation.questions import Selection

QUESTIONS = [{"question": f"What is {number}?", "answer": str(number)} for number in range(12)]


class Knowing(ScriptedMember):
    """A member that knows some of the answers. It gives a word 0.88 of probability."""

    def __init__(self, name, known, otherwise="unknown"):
        def reply(prompt):
            number = prompt[-1].content.removeprefix("What is ").removesuffix("?")
            return number if int(number) in known else otherwise

        super().__init__(name, reply)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


def ensemble_of(*members, **options):
    return Ensemble(members=list(members), **options)


def test_all_members_alone_all_pairs_and_the_whole_set_answer():
    ensemble = ensemble_of(*(ScriptedMember(name, "x") for name in "abc"))
    assert [system.name for system in every_system(ensemble)] == [
        *("a", "b", "c", "a + b", "a + c", "b + c", "a + b + c"),
    ]
    assert [system.is_single for system in every_system(ensemble)] == [True] * 3 + [False] * 4
    assert [system.name for system in every_system(part(ensemble, ("a", "c")))] == ["a", "c", "a + c"]


def test_parts_keep_names_weights_and_options():
    members = [{"model": "small:aspen", "weight": 2.0}, {"model": "small:aspen"}, {"model": "small:birch", "name": "x"}]
    ensemble = Ensemble(members=members, tau=0.5, dtype="float64", scoring="word")
    pair = part(ensemble, ("aspen", "aspen-2"))
    assert pair.names == ("aspen", "aspen-2")
    assert [member.weight for member in pair.config.members] == [2.0, 1.0]
    assert (pair.config.strategy.tau, pair.config.strategy.scoring) == (0.5, "word")
    assert [member.dtype for member in pair.config.members] == ["float64"] * 2
    alone = part(ensemble, ("x",))
    assert (alone.names, alone.config.strategy.name) == (("x",), "single")
    assert alone.config.members[0].load_key == ensemble.config.members[2].load_key


@pytest.mark.parametrize(
    "ensemble",
    [
        ensemble_of(ScriptedMember("a", "x")),
        ensemble_of(ScriptedMember("a", "x"), ScriptedMember("b", "x"), strategy="single"),
    ],
)
def test_nothing_to_compare_is_refused(ensemble, data):
    with pytest.raises(ConfigError, match="at least two members"):
        measurement(ensemble, data)


def test_marks_are_those_of_the_answers_and_improbable_answers_are_not_sure(data, tmp_path):
    ensemble = ensemble_of(Knowing("a", range(6), "I do not know it"), Knowing("b", range(3, 9)))
    results = measurement(ensemble, data, shots=0).run(tmp_path / "run")
    marks = marks_of(results, ensemble, "exact")
    assert marks.members == {"a": [1.0] * 6 + [0.0] * 6, "b": [0.0] * 3 + [1.0] * 6 + [0.0] * 3}
    assert marks.ensembles.keys() == {("a", "b")}
    assert marks.sure == {"a": [True] * 6 + [False] * 6, "b": [True] * 12}


def test_the_best_member_is_advised_and_its_config_can_be_read(data, tmp_path):
    ensemble = ensemble_of(Knowing("a", range(3)), Knowing("b", range(10)))
    advice = determine(ensemble, data, tmp_path / "run", shots=0)
    assert advice.advised == ("b",)
    assert advised(ensemble, advice).names == ("b",)
    (pair,) = advice.combinations
    assert (pair.union, pair.beta.value) == (pytest.approx(10 / 12), pytest.approx(2 / 12))
    assert pair.contradiction == pytest.approx(7 / 12)


def test_a_run_continues_where_it_was_stopped(data, tmp_path):
    given = []

    def stop_soon(answer):
        given.append(answer)
        if len(given) == 7:
            raise KeyboardInterrupt

    ensemble = ensemble_of(Knowing("a", range(3)), Knowing("b", range(10)))
    options = {"shots": 0, "selection": Selection(limit=5)}
    with pytest.raises(KeyboardInterrupt):
        determine(ensemble, data, tmp_path / "run", on_answer=stop_soon, **options)
    advice = determine(ensemble, data, tmp_path / "run", on_answer=given.append, **options)
    assert len(given) == 15
    assert advice.questions == 5
    assert len({answer.key for answer in given}) == 15


def test_another_metric_can_decide(data, tmp_path):
    ensemble = ensemble_of(Knowing("a", range(3)), Knowing("b", range(10)))
    determine(ensemble, data, tmp_path / "run", shots=0)
    with pytest.raises(ConfigError, match="metrics"):  # the folder has the answers judged without it
        determine(ensemble, data, tmp_path / "run", shots=0, metric="numeric")
    assert determine(ensemble, data, tmp_path / "run", shots=0, metric="f1").best == "b"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"trace": False}, "trace=False"),
        ({"generation": {"logprobs": False}}, "logprobs=False"),
        ({"metrics": ("numeric",)}, "got metrics"),
        ({"systems": ()}, "got systems"),
    ],
)
def test_options_that_the_advice_is_made_of_are_refused(data, tmp_path, options, problem):
    ensemble = ensemble_of(ScriptedMember("a", "x"), ScriptedMember("b", "x"))
    with pytest.raises(ConfigError, match=problem):
        determine(ensemble, data, tmp_path / "run", **options)


def test_members_alone_are_greedy_and_groups_without_the_options_are_named():
    members = [ScriptedMember(name, "x") for name in "abc"]
    sampling = ensemble_of(*members, generation={"temperature": 0.7, "seed": 1})
    assert [system.ensemble.config.generation.temperature for system in every_system(sampling)] == 3 * [0.0] + 4 * [0.7]
    with pytest.raises(ConfigError, match=r"a \+ c, which is compared .* anchor='b'"):
        every_system(ensemble_of(*members, strategy="adafuse", anchor="b"))
    with pytest.raises(ConfigError, match=r"a \+ b, which is compared .* at least 3 members"):
        every_system(ensemble_of(*members, strategy="consensus"))


def test_refused_questions_and_cut_answers_are_counted(data, tmp_path):
    short = ScriptedMember("short", "one two three four", context_window=4)
    long = ScriptedMember("long", "one two three four")
    advice = determine(ensemble_of(short, long), data, tmp_path / "run", generation={"max_new_tokens": 2})
    assert advice.refused == {"short": 12, "short + long": 12}
    assert advice.cut == {"long": 12}


def test_members_of_configs_can_be_chosen_again():
    ensemble = Ensemble(members=[MemberConfig(model="small:aspen", name="one"), MemberConfig(model="small:aspen")])
    assert part(ensemble, ensemble.names).config == ensemble.config
