"""Rerank: the choice among whole answers, and that budgets, stop strings and grammars hold for them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adafuse_core import (
    CancelledError,
    ConfigError,
    Ensemble,
    Grammar,
    MemberConfig,
    Score,
    ScriptedMember,
    Span,
    TextDelta,
)
from adafuse_core.members.scripted_prefix import ScriptedPrefix
from adafuse_core.strategies import Rerank
from adafuse_core.strategies.rerank import RULES
from adafuse_core.strategies.similarity import chrf, normalised

QUESTION = [{"role": "user", "content": "What is the capital of Peru and what is the currency of Japan?"}]
QUESTIONS = [
    QUESTION,
    [{"role": "user", "content": "Who wrote Faust and what is the capital of Kenya?"}],
    [{"role": "user", "content": "What is the capital of France?"}],
    "The capital of Peru",
]
SCHEMA = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}


def scripted(*replies, weights=None, **options):
    weights = weights or [1.0] * len(replies)
    members = [
        ScriptedMember(name, reply, weight=weight)
        for name, reply, weight in zip("abcde", replies, weights, strict=False)
    ]
    return Ensemble(members=members, strategy="rerank", **options)


@pytest.fixture(scope="module")
def small():
    """The small models, and for each question the members' answers and their scores `[answers][members]`."""
    ensemble = Ensemble(members=["small:aspen", "small:birch"])
    singles = [Ensemble(ensemble.config, strategy="single", member=name) for name in ensemble.names]
    known = []
    for question in QUESTIONS:
        texts = [single.generate(question).text for single in singles]
        scored = ensemble.score(question, [Span(text=text, ends=True) for text in texts])
        known.append((texts, [list(each.scores.values()) for each in scored]))
    return ensemble, known


def chosen(texts, scores, rule):
    """The choice, written a second time."""
    per_token = [[score.nll / len(score.logprobs) for score in row] for row in scores]
    nll = [statistics.mean(row) for row in per_token]
    values = {
        "nll": nll,
        "own": [per_token[index][index] for index in range(len(texts))],
        "mbr": [-sum(chrf(text, other) for other in texts) for text in texts],
        "vote": [(-texts.count(text), value) for text, value in zip(texts, nll, strict=True)],
    }[rule]
    return texts[values.index(min(values))]


@pytest.mark.parametrize("rule", RULES)
def test_choice_of_the_small_models_is_that_of_plain_code(small, rule):
    ensemble, known = small
    ensemble = Ensemble(ensemble.config, strategy=Rerank(rule=rule))
    for question, (texts, scores) in zip(QUESTIONS, known, strict=True):
        answer = ensemble.generate(question)
        assert answer.text == chosen(texts, scores, rule)
        assert answer.reason == "stop"
        assert len(answer.rounds) == 1
    assert sum(len(set(texts)) > 1 for texts, _ in known) >= 2


def test_majority_wins_and_its_likeliest_text_is_committed():
    answer = scripted("It is Rome.", "lima!", "Lima").generate("go")
    assert answer.text == "lima!"
    (played,) = answer.rounds
    assert [draft.spans[0].text for draft in played.drafts] == ["It is Rome.", "lima!", "Lima"]
    assert len(played.scores) == 3  # the two texts of the majority are a tie
    lone = scripted("Rome", "Lima", "Lima").generate("go")
    assert lone.text == "Lima"
    assert lone.rounds[0].scores == ()
    assert lone.rounds[0].proposers == ("b", "c")


def test_votes_are_weighted():
    assert scripted("Rome", "Lima", "Lima", weights=[3.0, 1.0, 1.0]).generate("go").text == "Rome"


def test_tie_goes_to_the_lowest_nll_and_then_to_the_earlier_member():
    # Every member finds its own text likely, and the others' unlikely: two members against one.
    assert scripted("one", "two").generate("go").text == "one"
    weighted = scripted("one", "two", weights=[1.0, 1.0], scoring="sum")
    assert weighted.generate("go").text == "one"
    assert scripted("one two three", "four", scoring="sum").generate("go").text == "four"


def test_pattern_finds_the_vote_in_an_answer():
    replies = ["Sum: 2 + 3. #### 5", "I say #### 5.", "All of it is 6. #### 6"]
    for pattern in (r"####\s*(\S+)", r"####\s*\S+"):
        assert scripted(*replies, answer_pattern=pattern).generate("go").text in replies[:2]
    assert scripted(*replies).generate("go").rounds[0].scores != ()  # three different answers


def test_own_takes_the_member_that_is_surest_of_its_answer(tiny_models):
    members = [MemberConfig(model=str(tiny_models[name]), dtype="float64") for name in ("bytes", "pieces")]
    ensemble = Ensemble(members=members, strategy=Rerank(rule="own"), scoring="byte")
    (played,) = ensemble.generate("The quick", max_new_tokens=12, logprobs=True).rounds[:1]
    own = [
        played.values[index][["bytes", "pieces"].index(candidate.proposers[0])]
        for index, candidate in enumerate(played.candidates)
    ]
    assert played.chosen == own.index(min(own))


def test_mbr_takes_the_answer_in_the_middle():
    replies = ["the cat sat on the mat", "the cat sat on a mat", "a dog stood by the wall"]
    values = {text: sum(chrf(text, other) for other in replies) for text in replies}
    answer = scripted(*replies, rule="mbr").generate("go")
    assert answer.text == max(values, key=values.__getitem__)
    assert answer.rounds[0].scores == ()
    scored = scripted(*replies, rule="mbr").generate("go", logprobs=True)
    assert scored.text == answer.text
    assert [score.member for score in scored.rounds[0].span_scores] == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["bytes", "pieces", "crossing"])
def test_a_model_with_itself_gives_its_own_text(tiny_models, name):
    config = MemberConfig(model=str(tiny_models[name]), dtype="float64")
    alone = Ensemble(members=[config], strategy="single", max_word_tokens=6)
    twice = Ensemble(members=[config, config], strategy="rerank", max_word_tokens=6)
    for prompt in ("The quick", "Grüße", "日本"):
        for budget in (1, 30):
            own = alone.generate(prompt, max_new_tokens=budget)
            both = twice.generate(prompt, max_new_tokens=budget)
            assert (both.text, both.reason) == (own.text, own.reason)


@pytest.mark.parametrize("rule", RULES)
def test_stop_strings_end_answers_before_they_are_compared(rule):
    ensemble = scripted("one two END three", "one two END four", "five END", rule=rule)
    for stop in (["END"], ["wo EN", "END"]):
        answer = ensemble.generate("go", stop=stop)
        assert answer.stop in stop
        assert answer.text in ("one two ", "one t", "five ")
        assert all(draft.spans[0].text.count("END") == 1 for draft in answer.rounds[0].drafts)
    votes = scripted("Lima\nBye", "lima\nSo long", "Rome\nBye", "Rome\nBye", weights=[2, 1, 1, 1])
    assert votes.generate("go", stop=["\n"]).text == "Lima"


def test_a_stop_string_in_a_thought_does_not_end_an_answer():
    members = [
        ScriptedMember("a", "<think>Stop? No.</think>Lima. Stop. More"),
        ScriptedMember("b", "<think>Stop? Well.</think>Lima. Stop. Other"),
        ScriptedMember("c", "Rome"),
    ]
    ensemble = Ensemble(members=members, strategy="rerank")
    answer = ensemble.generate([{"role": "user", "content": "?"}], stop=["Stop"])
    assert answer.text == "Lima. "
    assert answer.reasoning == "Stop? No."
    assert answer.stop == "Stop"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_budget_counts_tokens_of_the_first_member(rule, budget):
    ensemble = Ensemble(strategy=Rerank(rule=rule))
    answer = ensemble.generate(QUESTION, max_new_tokens=budget)
    assert answer.usage.completion_tokens["aspen"] == budget
    assert answer.reason == "length"
    whole = ensemble.generate(QUESTION, max_new_tokens=None)
    assert whole.reason == "stop"


def test_answers_are_compared_as_far_as_the_budget_goes():
    answer = scripted("one two three four", "one two 3 4", "one 2").generate("go", max_new_tokens=2)
    assert [candidate.span.text for candidate in answer.rounds[0].candidates] == ["one two", "one 2"]
    assert answer.rounds[0].proposers == ("a", "b")
    assert answer.text == "one two"


def test_the_author_goes_on_where_its_tokens_are_longer_than_those_of_the_first_member(tiny_models):
    """The budget counts other tokens than the draft of the author, which is therefore too short or too long."""
    for names in itertools.permutations(("bytes", "characters"), 2):
        members = [MemberConfig(model=str(tiny_models[name]), dtype="float64") for name in names]
        ensemble = Ensemble(members=members, strategy=Rerank(rule="nll"), max_word_tokens=6)
        for budget in (3, 10, 25):
            answer = ensemble.generate("The quick", max_new_tokens=budget)
            assert answer.usage.completion_tokens[names[0]] <= budget
            assert answer.reason == "length" or answer.rounds[-1].span.ends
            author = answer.rounds[0].winner.proposers[0]
            assert {played.winner.proposers[0] for played in answer.rounds} == {author}


@pytest.mark.parametrize("rule", ["vote", "mbr"])
def test_answers_obey_a_grammar_at_every_budget(tiny_models, rule):
    grammar = Grammar.json_schema(SCHEMA)
    members = [MemberConfig(model=str(tiny_models[name])) for name in ("bytes", "pieces")]
    ensemble = Ensemble(members=members, strategy=Rerank(rule=rule), max_word_tokens=6)
    for budget in (24, 31, 60):
        answer = ensemble.generate("Say: ", grammar=grammar, max_new_tokens=budget)
        assert json.loads(answer.text).keys() == {"capital"}
        assert answer.usage.completion_tokens["bytes"] <= budget


def test_tool_calls_are_chosen_whole():
    call = '<tool_call>\n{"name": "look", "arguments": {"place": "NAME"}}\n</tool_call>'
    look = {"name": "look", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
    members = [
        ScriptedMember(name, call.replace("NAME", place))
        for name, place in zip("abc", ("Rome", "Lima", "Lima"), strict=True)
    ]
    ensemble = Ensemble(members=members, strategy="rerank")
    answer = ensemble.generate(
        [{"role": "user", "content": "?"}], tools=[{"type": "function", "function": look}], stop=["name"]
    )
    assert [each.arguments for each in answer.tool_calls] == [{"place": "Lima"}]
    assert answer.reason == "tool_calls"


def test_batch_and_threads_give_the_texts_of_single_calls():
    ensemble = Ensemble(strategy=Rerank(rule="nll"))
    expected_texts = [ensemble.generate(prompt).text for prompt in QUESTIONS]
    assert [answer.text for answer in ensemble.batch(QUESTIONS * 2, max_concurrency=4)] == expected_texts * 2


def test_the_chosen_answer_is_streamed():
    ensemble = scripted("one two", "one two", "three")
    deltas = [event.text for event in ensemble.stream("go") if isinstance(event, TextDelta)]
    assert "".join(deltas) == "one two"


def test_cancelling_stops_a_draft_within_a_step():
    cancel = threading.Event()
    ensemble = Ensemble(strategy="rerank").load()
    with closing(ensemble.stream(QUESTION, cancel=cancel, max_new_tokens=None)) as stream:
        cancel.set()
        with pytest.raises(CancelledError) as caught:
            next(stream)
    assert caught.value.partial.text == ""


def test_temperature_samples_answers():
    ensemble = scripted("one", "two", "three", rule="mbr")
    texts = {ensemble.generate("go", temperature=5.0, seed=seed).text for seed in range(20)}
    assert texts == {"one", "two", "three"}
    assert (
        ensemble.generate("go", temperature=5.0, seed=3).text == ensemble.generate("go", temperature=5.0, seed=3).text
    )
    with pytest.raises(ConfigError, match="one candidate per round"):
        scripted("one").generate("go", temperature=0.5)


def test_an_answer_too_long_for_a_context_window_is_no_candidate():
    members = [ScriptedMember("a", "one two three four five"), ScriptedMember("b", "six", context_window=4)]
    answer = Ensemble(members=members, strategy=Rerank(rule="own")).generate("go")
    assert answer.text == "six"


def test_weights_may_follow_from_the_prompt(monkeypatch):
    def score_prompt(self, most_bytes):
        nll = {"a": 0.1, "b": 3.0, "c": 3.0}[self.name]
        return Score(member=self.name, logprobs=(-nll,), words=1, bytes=6, word_ends=(1,))

    monkeypatch.setattr(ScriptedPrefix, "score_prompt", score_prompt)
    assert scripted("Rome", "Lima", "Lima").generate("go").text == "Lima"
    assert scripted("Rome", "Lima", "Lima", weighting="prompt").generate("go").text == "Rome"


def test_an_anchor_keeps_its_answer_unless_another_is_clearly_better():
    replies = ["one two three", "four"]
    assert scripted(*replies, rule="nll", scoring="sum").generate("go").text == "four"
    for margin, text in ((0.1, "four"), (100.0, replies[0]), (math.inf, replies[0])):
        ensemble = scripted(*replies, rule="nll", scoring="sum", anchor="a", anchor_margin=margin)
        assert ensemble.generate("go").text == text


def test_wrong_options_are_refused():
    for weighting in ("agreement", "nll"):
        with pytest.raises(ConfigError, match=f"weighting='{weighting}'.* decides once per answer"):
            Rerank(weighting=weighting)
    with pytest.raises(ConfigError, match="no meaning for rule='vote'"):
        Rerank(anchor="a")
    with pytest.raises(ConfigError, match="rule='best'"):
        Ensemble(strategy="rerank", rule="best")
    with pytest.raises(ConfigError, match="no meaning for rule='mbr'"):
        Rerank(rule="mbr", answer_pattern="x")
    with pytest.raises(ConfigError, match="no regular expression"):
        Rerank(answer_pattern="(")
    with pytest.raises(ConfigError, match="answer_pattern=3"):
        Rerank(answer_pattern=3)


def test_answers_are_compared_without_case_blanks_and_outer_punctuation():
    assert normalised("  The ANSWER\n is: 5. ") == normalised("the answer is: 5") == "the answer is: 5"
    assert normalised("ﬁne") == "fine"
    assert normalised("!?") == "!?"
    assert normalised("") == ""


@settings(max_examples=100, deadline=None)
@given(st.text("abc d", max_size=12), st.text("abc d", max_size=12))
def test_similarity_is_that_of_sacrebleu(text, reference):
    chrf_module = pytest.importorskip("sacrebleu.metrics.chrf")
    value = chrf(text, reference)
    assert 0 <= value <= 1 + 1e-9
    if min(len(text.replace(" ", "")), len(reference.replace(" ", ""))) >= 1:
        other = chrf_module.CHRF().sentence_score(text, [reference]).score / 100
        assert math.isclose(value, other, abs_tol=1e-9)
