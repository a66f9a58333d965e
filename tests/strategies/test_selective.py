"""Drafts of one member that the others verify: with scripts, and as a plain implementation on the reference members."""

from __future__ import annotations

import itertools
import json
import threading

import pytest

from adafuse_core import (
    CancelledError,
    ConfigError,
    Ensemble,
    EnsembleConfig,
    Grammar,
    MemberConfig,
    ScriptedMember,
    TextDelta,
    small_models,
)
from adafuse_core.members.scripted_prefix import ScriptedPrefix
from adafuse_core.rounds import Candidate, Round
from adafuse_core.strategies.base import Needs
from adafuse_core.strategies.selective import Selective
from tests.agreement import difference
from tests.oracle import OracleEnsemble, OracleMember
from tests.test_rules import CAP, QUESTIONS, TEXTS, straddling


def scripted(*scripts, **options):
    weights = options.pop("weights", [1.0] * len(scripts))
    members = [
        ScriptedMember(f"m{at}", script, weight=weight)
        for at, (script, weight) in enumerate(zip(scripts, weights, strict=True))
    ]
    return Ensemble(members=members, strategy="selective", **options)


def played(answer):
    return [(each.span.text, each.span.ends, len(each.candidates)) for each in answer.rounds]


def test_what_all_would_write_is_committed_and_the_first_other_word_is_decided():
    ensemble = scripted("one two 3 four five six", "one two three four five six", weights=[1, 2], draft_words=4)
    answer = ensemble.generate("go")
    assert answer.text == "one two three four five six"
    assert played(answer) == [("one two", False, 1), (" three", False, 2), (" four five six", True, 1)]
    agreed, decided, _ = answer.rounds
    assert agreed.proposers == ("m0", "m1")
    assert [draft.spans[0].text for draft in agreed.drafts] == ["one two 3 four", "one two three four"]
    assert agreed.scores == ()
    assert [each.span.text for each in decided.candidates] == [" 3", " three"]


def test_a_word_is_not_agreed_upon_if_another_member_writes_a_longer_one():
    answer = scripted("the cat sat", "the cats sat", weights=[2, 1]).generate("go")
    assert played(answer)[:2] == [("the", False, 1), (" cat", False, 2)]


def test_an_end_that_not_all_members_write_is_decided():
    for weights, text in (([2, 1], "one two"), ([1, 2], "one two three")):
        answer = scripted("one two", "one two three", weights=weights).generate("go")
        assert answer.text == text
        assert played(answer)[0] == ("one", False, 1)


def test_three_members_have_to_agree():
    answer = scripted("a b c d", "a b x d", "a y c d", draft_words=4).generate("go")
    assert played(answer)[:2] == [("a", False, 1), (" b", False, 2)]


def test_the_drafter_drafts_first_and_the_others_get_its_draft(monkeypatch):
    calls, draft = [], ScriptedPrefix.draft

    def recorded(prefix, plan, hints=()):
        calls.append((prefix.name, plan.max_words, [hint.text for hint in hints]))
        return draft(prefix, plan, hints)

    monkeypatch.setattr(ScriptedPrefix, "draft", recorded)
    for speculation, hints in (("auto", ["one two"]), ("off", [])):
        calls.clear()
        scripted("one two", "one two", drafter="m1", draft_words=3, speculation=speculation).generate("go")
        assert calls == [("m1", 3, []), ("m0", 3, hints)]


def test_the_rules_of_scoring_and_anchor_apply_where_members_disagree():
    scripts = "one 2 three", "one two three"
    assert scripted(*scripts, weights=[1, 3]).generate("go").text == "one two three"
    anchored = scripted(*scripts, weights=[1, 3], anchor="m0", anchor_margin=10.0)
    assert anchored.generate("go").text == "one 2 three"


def test_a_temperature_samples_only_where_members_disagree():
    ensemble = scripted("one 2 three", "one two three")
    texts = {ensemble.generate("go", temperature=10.0, seed=seed).text for seed in range(30)}
    assert texts == {"one 2 three", "one two three"}
    with pytest.raises(ConfigError, match="one candidate per round"):
        scripted("one", generation={"temperature": 1.0})


@pytest.mark.parametrize("options", [{"drafter": "x"}, {"draft_words": 0}, {"draft_words": 2.5}, {"scoring": "x"}])
def test_wrong_options_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"got {name}="):
        EnsembleConfig(members=["a", "b"], strategy=Selective(**options))
    assert Selective().needs == Needs(top=2)


def test_stop_strings_and_budgets_cut_the_committed_words():
    ensemble = scripted("one two 3 four five six", "one two three four five six", weights=[1, 2])
    assert ensemble.generate("go", stop=["o thr"]).text == "one tw"
    assert ensemble.generate("go", stop=["ee four f"]).text == "one two thr"
    for tokens in range(1, 7):
        answer = ensemble.generate("go", max_new_tokens=tokens)
        assert answer.text == " ".join(["one", "two", "three", "four", "five", "six"][:tokens])


def test_a_full_context_window_ends_the_answer():
    members = [ScriptedMember("a", "one two three four"), ScriptedMember("b", "one 2 3 4 5 6", context_window=4)]
    answer = Ensemble(members=members, strategy="selective").generate("go")
    assert answer.reason == "length"
    assert answer.text.startswith("one")


def test_a_cancelled_answer_keeps_its_text():
    cancel, seen = threading.Event(), []
    stream = scripted("one two three four", "one two three four", draft_words=1).stream("go", cancel=cancel)
    while len(seen) < 2:
        seen += [event.text] if isinstance(event := next(stream), TextDelta) else []
    cancel.set()
    with pytest.raises(CancelledError) as caught:
        list(stream)
    assert caught.value.partial.text.startswith("one two")


# -- models ------------------------------------------------------------------------------------------------------------


class PlainSelective(OracleEnsemble):
    """The rule on the reference members."""

    def __init__(self, members, *, words=6, drafter=0, **rule):
        super().__init__(members, tau=0, max_words=1, branches=1, **rule)
        self.words, self.drafter, self.disputed = words, drafter, False

    def proposed(self):
        forced = self.grammar and self.grammar.forced(self.members[0].text.encode())
        if forced:
            return super().proposed()
        if not self.disputed:
            drafts = tuple(member.draft(0, self.words, 1) for member in self.members)
            written = [[draft.spans[0]] for draft in drafts]
            if len({draft.spans for draft in drafts}) > 1:
                self.disputed = True
                written = [[member.draft(0, n + 1, 1).spans[0] for n in range(self.words)] for member in self.members]
            common = [span for span in written[0] if all(span in others for others in written[1:])]
            if common:
                names = tuple(member.name for member in self.members)
                best = max(common, key=lambda span: (len(span.text), span.ends))
                return Round(drafts=drafts, candidates=(Candidate(span=best, proposers=names),))
        self.disputed = False
        return super().proposed()


class Team:
    """An ensemble and the reference members."""

    def __init__(self, paths, prompts, tokens):
        self.prompts, self.tokens, weights = prompts, tokens, (1.3, 0.8)
        pairs = list(zip(paths, weights, strict=True))
        self.members = [MemberConfig(model=str(path), dtype="float64", weight=weight) for path, weight in pairs]
        names = Ensemble(members=self.members).names
        self.oracle = [
            OracleMember(path, CAP, name=name, weight=weight) for (path, weight), name in zip(pairs, names, strict=True)
        ]

    def ensemble(self, **options):
        return Ensemble(members=self.members, max_word_tokens=CAP, strategy="selective", **options)

    def compared(self, prompt, rule, grammar=None, *, words=6, drafter=0, **options):
        """The plain answer, and the difference of the ensemble's."""
        given = {"max_new_tokens": self.tokens, **options}
        expected = PlainSelective(self.oracle, words=words, **rule).answer(prompt, grammar=grammar, **given)
        ensemble = self.ensemble(drafter=self.oracle[drafter].name, draft_words=words, **rule)
        return expected, difference(ensemble.generate(prompt, grammar=grammar, **given), expected)


@pytest.fixture(scope="module")
def teams(tiny_models):
    small = [small_models.path(name) for name in small_models.NAMES]
    tiny = [tiny_models["bytes"], tiny_models["pieces"]]
    alike = [tiny_models["modern"], tiny_models["modern"]]
    return {"small": Team(small, QUESTIONS, 24), "tiny": Team(tiny, TEXTS, 7), "alike": Team(alike, TEXTS, 12)}


RULES = [
    ({}, {}),
    ({"scoring": "word", "pool": "linear"}, {"words": 3, "drafter": 1}),
    ({"weighting": "agreement"}, {"words": 1}),
    ({"scoring": "sum"}, {"words": 9, "drafter": 1}),
]


@pytest.mark.parametrize("name", ["small", "tiny", "alike"])
def test_answers_are_those_of_the_plain_implementation(teams, name, count):
    team, wrong, agreed, decided, tried = teams[name], [], 0, 0, 0
    for number, (rule, own) in enumerate(RULES):
        prompt, draw = team.prompts[number % 3], {"temperature": 2.0, "seed": 7}
        for options in ({"logprobs": number % 2 == 0}, draw | ({"max_new_tokens": 5} if number % 2 else {})):
            expected, problem = team.compared(prompt, rule, **own, **options)
            wrong += [(rule, own, options, problem)] if problem else []
            agreed += sum(len(each.candidates) == 1 for each in expected.rounds)
            decided += sum(len(each.candidates) > 1 for each in expected.rounds)
            tried += 1
        for stop in straddling(expected)[number % 3 :][: 1 - number % 2]:
            ended, problem = team.compared(prompt, rule, **own, stop=stop, **draw)
            wrong += [(rule, own, stop, problem)] if problem else []
            assert ended.reason == "stop"
            tried += 1
    assert not wrong
    assert agreed >= {"small": 10, "tiny": 0, "alike": 10}[name]
    assert decided >= {"small": 5, "tiny": 10, "alike": 0}[name]
    count("generations equal to the oracle", tried, at_least=9)


def test_grammars_are_obeyed_as_in_the_plain_implementation(teams, count):
    grammar = Grammar.regex("(The|A) (quick brown fox|étang|日本),? [a-c]{2}!")
    for name, (rule, own) in itertools.product(teams, RULES[:2]):
        team = teams[name]
        expected, problem = team.compared(team.prompts[0], rule, grammar, **own, max_new_tokens=80, logprobs=True)
        assert not problem, (name, rule, problem)
        assert expected.text.endswith("!")
    count("generations equal to the oracle", 6, at_least=6)


def test_json_is_valid_within_every_budget(teams):
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    for tokens in (16, 60):
        grammar = Grammar.json_schema(schema)
        answer = teams["small"].ensemble().generate(QUESTIONS[0], grammar=grammar, max_new_tokens=tokens)
        assert "city" in json.loads(answer.text)


def test_the_text_is_that_of_deciding_about_every_word(teams):
    for question in QUESTIONS[1:]:
        each_word = Ensemble(members=teams["small"].members, strategy="adafuse", max_words=1, branches=1).generate(
            question
        )
        for words in (1, 5):
            answer = teams["small"].ensemble(draft_words=words).generate(question)
            assert answer.text == each_word.text
            assert words == 1 or answer.usage.rounds < each_word.usage.rounds


@pytest.mark.parametrize("name", small_models.NAMES)
def test_one_member_and_a_model_with_itself_write_its_own_greedy_text(name):
    member = MemberConfig(model=f"small:{name}", dtype="float64")
    for question, words in zip(QUESTIONS, (1, 5, 30), strict=True):
        text = Ensemble(members=[member], strategy="single").generate(question, max_new_tokens=40).text
        for members in ([member], [member, member]):
            ensemble = Ensemble(members=members, strategy="selective", draft_words=words)
            assert ensemble.generate(question, max_new_tokens=40).text == text


def test_streams_and_batches_have_the_text_of_single_answers(teams):
    ensemble = teams["small"].ensemble(draft_words=3)
    answers = [ensemble.generate(question) for question in QUESTIONS]
    assert [each.text for each in ensemble.batch(QUESTIONS)] == [each.text for each in answers]
    deltas = [each.text for each in ensemble.stream(QUESTIONS[2]) if isinstance(each, TextDelta)]
    assert "".join(deltas) == answers[2].text
    assert len(deltas) > 3


def test_verifiers_read_an_agreed_draft_in_few_passes(teams):
    ensemble = teams["small"].ensemble(draft_words=8, speculation="verify")
    drafter, verifier = (member.backend.model for member in ensemble.members)
    before = drafter.forwards, verifier.forwards
    answer = ensemble.generate(QUESTIONS[2])
    assert all(len(each.candidates) == 1 for each in answer.rounds)
    passes = drafter.forwards - before[0], verifier.forwards - before[1]
    assert 0 < 2 * passes[1] < passes[0]
