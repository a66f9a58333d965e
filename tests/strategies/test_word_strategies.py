"""What holds for every strategy that decides about words: streams, batches, stop strings, grammars, budgets."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import pytest

from adafuse_core import CancelledError, ConfigError, Ensemble, Finished, Grammar, ScriptedMember, TextDelta
from tests.strategies.teams import CAP, QUESTIONS

RULES = {
    "span": {"words": 2},
    "span with branches": {"words": 2, "branches": 2, "outlier_ratio": 3.0},
    "consensus": {"max_words": 2},
    "beam": {"beams": 2, "branches": 2, "horizon": 3},
}
ALONE = {"span": {}, "consensus": {"max_words": 3}, "beam": {"beams": 1}}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer"},
        "good": {"type": "boolean"},
    },
    "required": ["name", "size", "good"],
    "additionalProperties": False,
}
TEXTS = ("one two three four five six", "one two 3 four five 6", "one 2 three four five six")


@dataclass(frozen=True)
class Rule:
    """A strategy with options, and a number of members that suits it."""

    name: str

    def of(self, members, **options):
        return Ensemble(members=members, strategy=self.name.split()[0], **{**RULES[self.name], **options})

    def scripted(self, *texts, **options):
        return self.of(
            [ScriptedMember(f"m{at}", text, margin=0.5) for at, text in enumerate(texts or TEXTS)], **options
        )

    def small(self, **options):
        return self.of(["small:aspen", "small:birch", {"model": "small:aspen", "weight": 0.5}], **options)


@pytest.fixture(params=RULES)
def rule(request):
    return Rule(request.param)


def test_a_stream_has_the_text_of_the_answer_in_pieces(rule):
    ensemble = rule.small()
    answer = ensemble.generate(QUESTIONS[2], max_new_tokens=12)
    *events, last = ensemble.stream(QUESTIONS[2], max_new_tokens=12)
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert isinstance(last, Finished)
    assert "".join(deltas) == answer.text
    assert len(deltas) > 1


def test_answers_of_a_batch_are_those_of_single_requests(rule):
    ensemble = rule.small()
    together = ensemble.batch(QUESTIONS, max_concurrency=3, max_new_tokens=8)
    alone = [ensemble.generate(question, max_new_tokens=8) for question in QUESTIONS]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [len(answer.rounds) for answer in together] == [len(answer.rounds) for answer in alone]


@pytest.mark.parametrize("stop", ["two", "o th", "e four f", "six"])
def test_an_answer_ends_at_a_stop_string(rule, stop):
    answer = rule.scripted(*TEXTS[:1] * 3).generate("go", stop=stop)
    assert (answer.text, answer.stop, answer.reason) == (TEXTS[0].partition(stop)[0], stop, "stop")


def test_members_that_disagree_stop_too(rule):
    answer = rule.scripted().generate("go", stop="four")
    assert (answer.text.split()[0], answer.stop) == ("one", "four")
    assert len(answer.text.split()) == 3


@pytest.mark.parametrize("names", [("aspen", "birch", "pieces"), ("bytes", "pieces", "modern")], ids="+".join)
def test_json_is_valid_with_every_budget(rule, tiny_models, names):
    ensemble = rule.of([tiny_models.get(name, f"small:{name}") for name in names], max_word_tokens=CAP)
    grammar = Grammar.json_schema(SCHEMA)
    for budget in (48, 80):
        prompt = "Lima is" if "bytes" in names else QUESTIONS[0]
        answer = ensemble.generate(prompt, grammar=grammar, max_new_tokens=budget)
        assert json.loads(answer.text).keys() == {"name", "size", "good"}
        assert answer.usage.completion_tokens[ensemble.names[0]] <= budget


def test_a_grammar_with_forced_text_and_choices_is_followed(rule):
    replies = [json.dumps({"name": name, "size": 3, "good": good}) for name, good in (("Ada", True), ("Bo", True))]
    answer = rule.scripted(replies[0], replies[0], replies[1]).generate("go", grammar=Grammar.json_schema(SCHEMA))
    assert json.loads(answer.text) == {"name": "Ada", "size": 3, "good": True}


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_an_answer_is_cut_at_its_budget(rule, budget):
    answer = rule.scripted(*TEXTS[:1] * 3).generate("go", max_new_tokens=budget)
    assert (answer.text.split(), answer.reason) == (TEXTS[0].split()[:budget], "length")
    answer = rule.small().generate(QUESTIONS[2], max_new_tokens=budget)
    assert (answer.usage.completion_tokens["aspen"], answer.reason) == (budget, "length")


def test_a_cancelled_answer_has_the_text_so_far(rule):
    cancel, texts = threading.Event(), []

    def read():
        for event in rule.small().stream(QUESTIONS[2], cancel=cancel, max_new_tokens=64):
            if isinstance(event, TextDelta):
                texts.append(event.text)
                cancel.set()

    with pytest.raises(CancelledError) as caught:
        read()
    assert len(texts) == 1
    assert caught.value.partial.text == texts[0]


def test_a_delayed_member_is_cancelled_in_the_middle_of_a_search(rule):
    cancel = threading.Event()
    members = [ScriptedMember(f"m{at}", text, delay=60.0) for at, text in enumerate(TEXTS)]
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    with pytest.raises(CancelledError):
        rule.of(members).generate("go", cancel=cancel)
    timer.join()


def test_temperature_samples_with_a_seed(rule):
    ensemble = rule.scripted(generation={"temperature": 9.0})
    texts = {seed: ensemble.generate("go", seed=seed).text for seed in range(12)}
    assert len(set(texts.values())) > 1
    assert [ensemble.generate("go", seed=seed).text for seed in texts] == list(texts.values())


@pytest.mark.parametrize(
    ("name", "options"), [("span", {"branches": 1}), ("beam", {"beams": 1}), ("beam", {"beams": 3, "branches": 1})]
)
def test_temperature_without_a_choice_is_refused(name, options):
    ensemble = Ensemble(members=[ScriptedMember("m", "one")], strategy=name, **options)
    with pytest.raises(ConfigError, match="temperature"):
        ensemble.generate("go", temperature=0.5)


def test_log_probabilities_cover_all_committed_text(rule):
    for ensemble, prompt in ((rule.small(), QUESTIONS[0]), (rule.scripted(), "go")):
        answer = ensemble.generate(prompt, logprobs=True, max_new_tokens=9)
        assert len(answer.rounds) > 1
        for played in answer.rounds:
            assert [score.member for score in played.span_scores] == list(ensemble.names)
            assert json.dumps(played.to_dict())


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("model", ["aspen", "birch", "pieces"])
def test_a_model_with_itself_gives_its_own_greedy_text(tiny_models, name, model):
    model = tiny_models.get(model, f"small:{model}")
    greedy = Ensemble(members=[model], strategy="single")
    ensemble = Ensemble(members=[model] * 3, strategy=name, branches=1, **ALONE[name])
    for question in QUESTIONS[1:]:
        assert ensemble.generate(question, max_new_tokens=12).text == greedy.generate(question, max_new_tokens=12).text


@pytest.mark.parametrize("name", ["span", "beam"])
def test_one_member_decodes_alone(name):
    greedy = Ensemble(members=["small:birch"], strategy="single").generate(QUESTIONS[1], max_new_tokens=16)
    alone = Ensemble(members=["small:birch"], strategy=name, branches=1).generate(QUESTIONS[1], max_new_tokens=16)
    assert alone.text == greedy.text
    assert Ensemble(members=["small:birch"], strategy=name, branches=3).generate(QUESTIONS[1], max_new_tokens=16).text
