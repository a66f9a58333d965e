"""Panel: what the judge reads, what it picks or writes, and what is refused."""

from __future__ import annotations

import json
import threading
from contextlib import closing

import pytest

from adafuse_core import (
    CancelledError,
    ConfigError,
    ContextOverflowError,
    Ensemble,
    Grammar,
    MemberConfig,
    ScriptedMember,
    TextDelta,
)
from adafuse_core.strategies import Panel
from adafuse_core.strategies.judge_prompts import pick_prompt

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of Peru?"}]
ASKED_TO_PICK = """What is the capital of Peru?

Here are 2 answers to this:

Answer A:
Rome

Answer B:
Lima

Which answer is the best? Reply with its letter."""
ASKED_TO_MERGE = """What is the capital of Peru?

Here are 2 answers to this. Each may be wrong.

Answer A:
Rome

Answer B:
Lima

Write the best answer, from what is right in these answers. Reply with the answer only."""


def judging(own, pick, merged="Lima, of course."):
    """A script: its own answer to the question; as a judge the label of the answer `pick`, or a new answer."""

    def reply(prompt):
        text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
        if "is answer" in text or "is continuation" in text:
            blocks = text.partition("A:\n")[2].split("\n\n")
            return " A" if blocks[0] == pick else " B"
        return merged if "what is right" in text else own

    return reply


def panel(*, mode="pick", pick="Lima", judge="a", own=("Rome", "Lima"), merged="Lima, of course.", **options):
    members = [ScriptedMember(name, judging(text, pick, merged)) for name, text in zip("ab", own, strict=True)]
    return members, Ensemble(members=members, strategy=Panel(judge=judge, mode=mode), **options)


@pytest.mark.parametrize("pick", ["Rome", "Lima"])
@pytest.mark.parametrize("judge", ["a", "b"])
def test_the_judge_picks_an_answer(judge, pick):
    members, ensemble = panel(judge=judge, pick=pick)
    answer = ensemble.generate(QUESTION)
    assert (answer.text, answer.reason) == (pick, "stop")
    (played,) = answer.rounds
    assert [candidate.span.text for candidate in played.candidates] == ["Rome", "Lima"]
    assert played.scores == ()
    prompts = {member.name: member.prompts for member in members}
    assert [len(each) for each in prompts.values()] == ([3, 1] if judge == "a" else [1, 3])


def test_the_judge_reads_the_whole_request_and_both_orders():
    (judge, _), ensemble = panel()
    ensemble.generate(QUESTION)
    own, forwards, backwards = judge.prompts
    assert [message.content for message in own] == ["Be brief.", "What is the capital of Peru?"]
    assert [message.role for message in forwards] == ["system", "user", "assistant"]
    assert [message.content for message in forwards] == ["Be brief.", ASKED_TO_PICK, "The best answer is answer"]
    assert "Answer A:\nLima\n\nAnswer B:\nRome" in backwards[1].content


def test_a_judge_that_prefers_a_place_decides_nothing():
    members = [ScriptedMember("a", lambda prompt: " A" if len(prompt) == 3 else "Rome"), ScriptedMember("b", "Lima")]
    answer = Ensemble(members=members, strategy="panel").generate(QUESTION)
    assert answer.text == "Rome"  # a tie, so the earlier member's


def test_text_prompts_are_judged_as_texts():
    (judge, _), ensemble = panel(own=(" Rome", " Lima"))
    assert ensemble.generate("The capital of Peru is").text == " Lima"
    assert judge.prompts[1] == (
        "Text:\nThe capital of Peru is\n\nPossible continuations of this text:\n\nContinuation A:\nRome\n\n"
        "Continuation B:\nLima\n\nThe best continuation is continuation"
    )


@pytest.mark.parametrize("judge", [None, "b"])
def test_the_judge_writes_an_answer(judge):
    members, ensemble = panel(mode="merge", judge=judge)
    answer = ensemble.generate(QUESTION)
    assert (answer.text, answer.reason) == ("Lima, of course.", "stop")
    assert [played.span.text for played in answer.rounds] == ["Lima,", " of", " course."]
    assert {played.proposers for played in answer.rounds} == {(judge or "a",)}
    assert [draft.spans[0].text for draft in answer.rounds[0].drafts] == ["Rome", "Lima"]
    asked = members["ab".index(judge or "a")].prompts[1]
    assert [message.content for message in asked] == ["Be brief.", ASKED_TO_MERGE]
    deltas = [event.text for event in ensemble.stream(QUESTION) if isinstance(event, TextDelta)]
    assert deltas == ["Lima,", " of", " course."]


def test_a_text_is_continued_by_the_judge_itself():
    (judge, _), ensemble = panel(mode="merge", own=(" Rome", " Lima"), merged=" Lima.")
    assert ensemble.generate("The capital of Peru is").text == " Lima."
    assert judge.prompts[1].endswith("\nThe capital of Peru is")


@pytest.mark.parametrize("mode", ["pick", "merge"])
def test_equal_answers_need_no_judge(mode):
    members, ensemble = panel(mode=mode, own=("Lima", "Lima"))
    assert ensemble.generate(QUESTION).text == "Lima"
    assert [len(member.prompts) for member in members] == [1, 1]


@pytest.mark.parametrize("mode", ["pick", "merge"])
def test_a_model_with_itself_gives_its_own_text(tiny_models, mode):
    config = MemberConfig(model=str(tiny_models["bytes"]), dtype="float64")
    alone = Ensemble(members=[config], strategy="single", max_word_tokens=6)
    twice = Ensemble(members=[config, config], strategy=Panel(mode=mode), max_word_tokens=6)
    for prompt in ("The quick", "Grüße"):
        assert twice.generate(prompt, max_new_tokens=20).text == alone.generate(prompt, max_new_tokens=20).text


def test_the_pick_of_small_models_is_that_of_the_scores_of_the_labels():
    question = [{"role": "user", "content": "What is the capital of Peru and what is the currency of Japan?"}]
    ensemble = Ensemble(strategy=Panel(judge="birch"))
    singles = [Ensemble(strategy="single", member=name) for name in ensemble.names]
    texts = [single.generate(question).text for single in singles]
    assert len(set(texts)) == 2
    values = [0.0, 0.0]
    judge = Ensemble(strategy="single", member="birch", generation={"continue_final_message": True})
    user, begun = pick_prompt([_message(question)], ["FIRST", "SECOND"])
    for order in ((0, 1), (1, 0)):
        content = user.content.replace("FIRST", texts[order[0]]).replace("SECOND", texts[order[1]])
        prompt = [{"role": "user", "content": content}, {"role": "assistant", "content": begun.content}]
        for index, scored in zip(order, judge.score(prompt, [" A", " B"]), strict=True):
            values[index] += scored.scores["birch"].nll
    answer = ensemble.generate(question)
    assert answer.text == texts[values.index(min(values))]
    assert answer.usage.read_tokens["birch"] > answer.usage.read_tokens["aspen"]


def _message(question):
    from adafuse_core import Message

    return Message.from_any(question[0])


@pytest.mark.parametrize("mode", ["pick", "merge"])
@pytest.mark.parametrize("budget", [1, 3, 9])
def test_budgets_hold(mode, budget):
    answer = Ensemble(strategy=Panel(mode=mode)).generate(QUESTION, max_new_tokens=budget)
    assert answer.usage.completion_tokens["aspen"] <= budget
    assert answer.reason == "length" or answer.rounds[-1].span.ends


@pytest.mark.parametrize("mode", ["pick", "merge"])
def test_stop_strings_hold_and_are_cut_from_what_the_judge_reads(mode):
    (judge, _), ensemble = panel(mode=mode, own=("Rome END x", "Lima END y"), merged="Lima END z")
    answer = ensemble.generate(QUESTION, stop=["END"])
    assert answer.text.strip() == "Lima"
    assert answer.stop == "END"
    assert "END" not in judge.prompts[1][1].content


def test_thoughts_are_cut_from_what_the_judge_reads():
    (judge, _), ensemble = panel(own=("<think>Hm.</think>Rome", "<think>Oh.</think>Lima"))
    answer = ensemble.generate(QUESTION)
    assert (answer.text, answer.reasoning) == ("Lima", "Oh.")
    assert judge.prompts[1][1].content == ASKED_TO_PICK


@pytest.mark.parametrize("mode", ["pick", "merge"])
def test_answers_obey_a_grammar(tiny_models, mode):
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    members = [MemberConfig(model=str(tiny_models[name])) for name in ("bytes", "pieces")]
    ensemble = Ensemble(members=members, strategy=Panel(mode=mode), max_word_tokens=6)
    for budget in (20, 40):
        answer = ensemble.generate("Say: ", grammar=Grammar.json_schema(schema), max_new_tokens=budget)
        assert json.loads(answer.text).keys() == {"name"}
        assert answer.usage.completion_tokens["bytes"] <= budget


def test_batch_gives_the_texts_of_single_calls():
    ensemble = Ensemble(strategy=Panel(mode="merge"))
    questions = [QUESTION, [{"role": "user", "content": "Who wrote Faust?"}]] * 2
    texts = [ensemble.generate(question, max_new_tokens=12).text for question in questions[:2]]
    assert [each.text for each in ensemble.batch(questions, max_new_tokens=12, max_concurrency=4)] == texts * 2


def test_temperature_samples_answers_by_their_labels():
    _, ensemble = panel()
    texts = {ensemble.generate(QUESTION, temperature=20.0, seed=seed).text for seed in range(12)}
    assert texts == {"Rome", "Lima"}
    with pytest.raises(ConfigError, match="one candidate per round"):
        panel(mode="merge")[1].generate(QUESTION, temperature=1.0)


def test_cancelling_while_the_judge_writes_keeps_the_text_so_far():
    cancel = threading.Event()
    _, ensemble = panel(mode="merge")
    with closing(ensemble.stream(QUESTION, cancel=cancel)) as stream:
        assert next(stream) == TextDelta(text="Lima,")
        cancel.set()
        with pytest.raises(CancelledError) as caught:
            list(stream)
    assert caught.value.partial.text == "Lima,"


def test_further_prompts_are_closed_with_the_request(monkeypatch):
    from adafuse_core.members.scripted import ScriptedPrefix

    closed = []
    monkeypatch.setattr(ScriptedPrefix, "close", lambda self: closed.append(self))
    _, ensemble = panel(mode="merge")
    with closing(ensemble.stream(QUESTION)) as stream:
        next(stream)
    assert len(set(map(id, closed))) == 3


def test_a_judge_without_room_for_the_answers_is_an_error():
    members = [ScriptedMember("a", "one two", context_window=12), ScriptedMember("b", "three four")]
    with pytest.raises(ContextOverflowError, match=r"member 'a': as the judge, .* context window is 12"):
        Ensemble(members=members, strategy="panel").generate("go")


def test_what_a_judge_cannot_read_is_refused():
    _, ensemble = panel()
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(ConfigError, match="tools"):
        ensemble.generate(QUESTION, tools=[tool])
    with pytest.raises(ConfigError, match="continue_final_message"):
        ensemble.generate([*QUESTION, {"role": "assistant", "content": "It"}], continue_final_message=True)


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match=r"judge='c'.*'a', 'b'"):
        Ensemble(members=[{"model": "x", "name": "a"}, {"model": "y", "name": "b"}], strategy="panel", judge="c")
    with pytest.raises(ConfigError, match="mode='vote'"):
        Panel(mode="vote")
    with pytest.raises(ConfigError, match="27 members"):
        Ensemble(members=["small:aspen"] * 27, strategy="panel")
