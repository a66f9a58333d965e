"""The default rule: answers equal the plain implementation's under all limits; streams, cancellation, repetition."""

from __future__ import annotations

import itertools
import threading

import pytest

from adafuse_core import CancelledError, Ensemble, Grammar, RoundDone, ScriptedMember, TextDelta
from tests.agreement import decisions
from tests.strategies.oracle_beam import OracleBeam
from tests.strategies.teams import PROPERTY, QUESTIONS, team_of

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar.regex(r"(The|A) (quick brown fox|étang|日本|[a-c ]{3,9}),? [a-c]{2}!"),
    Grammar.regex(r" ?((The quick|été|[a-z]{1,6}),? ?){2,4}\."),
    Grammar.json_schema(SCHEMA),
]
TEAMS = [["aspen", "birch"], ["bytes", "pieces"], ["modern", "characters"]]


@pytest.fixture(params=TEAMS, ids="+".join)
def team(request, tiny_models):
    return team_of(request.param, tiny_models, OracleBeam)


def test_answers_under_grammars_are_those_of_the_plain_implementation(team, count):
    forced, wide = 0, 0
    for grammar, prompt in zip(GRAMMARS, team.prompts, strict=True):
        expected, problem = team.compared(prompt, "beam", {}, grammar=grammar, max_new_tokens=120)
        assert not problem, (prompt, problem)
        forced += sum(not played.drafts for played in expected.rounds)
        wide += sum(len(draft.spans) > 1 for played in expected.rounds for draft in played.drafts)
    assert forced >= 1
    assert wide >= 1
    count(PROPERTY, len(GRAMMARS), at_least=3)


def test_answers_that_end_at_stop_strings_are_those_of_the_plain_implementation(team, count):
    compared = 0
    for prompt in team.prompts[:2]:
        whole, problem = team.compared(prompt, "beam", {}, max_new_tokens=10)
        assert not problem
        text = whole.full_text
        ends = list(itertools.accumulate(len(played.span.text) for played in whole.rounds))
        across = text[max(0, ends[0] - 2) : ends[0] + 2]
        for stop in ((text[len(text) // 3 :][:3],), (text[-3:], "not to be found"), (across,)):
            expected, problem = team.compared(prompt, "beam", {}, max_new_tokens=10, stop=stop)
            assert not problem, (prompt, stop, problem)
            assert expected.reason == "stop"
            assert not any(string in expected.text for string in stop)
            compared += 1
    count(PROPERTY, compared, at_least=6)


def test_answers_that_a_small_budget_cuts_are_those_of_the_plain_implementation(team, count):
    for prompt, tokens in itertools.product(team.prompts, (1, 3)):
        expected, problem = team.compared(prompt, "beam", {}, max_new_tokens=tokens, logprobs=tokens == 3)
        assert not problem, (prompt, tokens, problem)
        assert expected.reason in ("length", "stop")
    count(PROPERTY, 2 * len(team.prompts), at_least=6)


def test_sampled_answers_are_those_of_the_plain_implementation(team, count):
    for seed, prompt in enumerate(team.prompts):
        _, problem = team.compared(prompt, "beam", {}, temperature=5.0, seed=seed, max_new_tokens=12)
        assert not problem, (prompt, problem)
    count(PROPERTY, len(team.prompts), at_least=3)


def test_streams_have_the_text_and_rounds_of_the_answer(team):
    ensemble = Ensemble(team.ensemble.config)
    assert ensemble.config.strategy.name == "beam"
    for prompt, stop in itertools.product(team.prompts[:2], ((), ("an", "is"))):
        answer = ensemble.generate(prompt, max_new_tokens=12, stop=stop)
        events = list(ensemble.stream(prompt, max_new_tokens=12, stop=stop))
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
        rounds = [event.round for event in events if isinstance(event, RoundDone)]
        assert [decisions(played) for played in rounds] == [decisions(played) for played in answer.rounds]
        assert answer.text == "".join(played.span.text for played in answer.rounds)[: len(answer.text)]


def test_words_are_streamed_as_soon_as_all_hypotheses_begin_with_them():
    members = [ScriptedMember("a", "one two three four"), ScriptedMember("b", "one two 3 four")]
    texts = [event.text for event in Ensemble(members=members).stream("go") if isinstance(event, TextDelta)]
    assert texts[:2] == ["one", " two"]
    assert "".join(texts) == "one two three four"


def test_cancelling_ends_a_search_and_keeps_the_committed_text():
    cancel = threading.Event()
    stream = Ensemble(members=["small:aspen", "small:birch"]).stream(QUESTIONS[0], cancel=cancel)
    text = next(event.text for event in stream if isinstance(event, TextDelta))
    cancel.set()
    with pytest.raises(CancelledError) as caught:
        list(stream)
    assert caught.value.partial.text.startswith(text)


@pytest.mark.parametrize("name", ["aspen", "birch"])
def test_a_model_with_itself_writes_its_greedy_text_if_each_proposes_one_word(name):
    """With several first tokens, a word can win whose first token is not the likeliest one."""
    greedy = Ensemble(members=[f"small:{name}"], strategy="single")
    for options in ({"branches": 1}, {"branches": 1, "beams": 1}, {"tau": 0.0}):
        twice = Ensemble(members=[f"small:{name}"] * 2, **options)
        for question in QUESTIONS:
            expected = greedy.generate(question, max_new_tokens=24)
            assert twice.generate(question, max_new_tokens=24).text == expected.text


@pytest.mark.parametrize("name", ["aspen", "birch"])
def test_a_model_with_itself_writes_what_it_writes_alone(name):
    alone = Ensemble(members=[f"small:{name}"])
    twice = Ensemble(members=[f"small:{name}"] * 2)
    for question in QUESTIONS:
        assert twice.generate(question, max_new_tokens=24).text == alone.generate(question, max_new_tokens=24).text
