"""A member that fails while an answer is written: the answer fails, or goes on without it."""

from __future__ import annotations

import logging
import threading

import pytest

from adafuse_core import ConfigError, ContextOverflowError, Ensemble, Finished, MemberDropped, MemberError, RoundDone
from adafuse_core.backends.local import LocalSession
from adafuse_core.generation import collect
from adafuse_core.members.scripted import ScriptedMember
from adafuse_core.members.scripted_prefix import ScriptedPrefix
from tests.agreement import difference
from tests.oracle import OracleEnsemble, OracleMember

CAP = 8
NAMES = ("bytes", "pieces", "modern")
PLAN = {"tau": 0.9, "max_words": 2, "branches": 2}


@pytest.fixture(scope="module")
def team(tiny_models):
    """An ensemble of three models, and the same models for the oracle."""
    members = [{"model": str(tiny_models[name]), "name": name, "dtype": "float64"} for name in NAMES]
    ensemble = Ensemble(members=members, strategy="adafuse", max_word_tokens=CAP, on_member_failure="drop", **PLAN)
    with ensemble:
        yield ensemble, [OracleMember(tiny_models[name], CAP, name=name) for name in NAMES]


@pytest.fixture
def fail(monkeypatch):
    """Lets the sessions of a member raise an error in one of their methods, from some commit on."""

    def fail(member, method, commits):
        monkeypatch.undo()
        original, count = {name: getattr(LocalSession, name) for name in ("draft", "score", "commit")}, {}

        def of(name):
            def call(session, *arguments):
                mine = session._batcher is member.backend._batcher
                if mine and name == method and count.get(session, 0) >= commits:
                    raise ConnectionError("it is gone")
                if name == "commit":
                    count[session] = count.get(session, 0) + 1
                return original[name](session, *arguments)

            return call

        for name in original:
            monkeypatch.setattr(LocalSession, name, of(name))

    return fail


@pytest.mark.parametrize("method", ["draft", "score", "commit"])
@pytest.mark.parametrize("name", NAMES)
def test_the_answer_goes_on_as_the_remaining_members_continue_the_committed_text(team, fail, name, method):
    ensemble, oracle = team
    for commits in (0, 2):
        fail(ensemble.members[NAMES.index(name)], method, commits)
        events = list(ensemble.stream("The quick brown", max_new_tokens=12))
        before = events[: next(place for place, event in enumerate(events) if isinstance(event, MemberDropped))]
        played = sum(isinstance(event, RoundDone) for event in before)
        assert played >= commits
        leave = {name: played + (method == "commit")}  # it has taken part in the round that it could not commit
        expected = OracleEnsemble(oracle, **PLAN).answer("The quick brown", max_new_tokens=12, leave=leave)
        answer = collect(events)
        assert difference(answer, expected) is None
        (dropped,) = answer.dropped_members
        assert dropped.member == name
        assert "it is gone" in dropped.error
        assert list(answer.usage.prompt_tokens) == [*(each for each in NAMES if each != name), name]


def scripted(failing=2, **options):
    """Three members, one of which fails after some drafts."""
    return [
        ScriptedMember("a", "one two three four five", margin=0.1),
        ScriptedMember("b", "uno due tre quattro cinque", fail_after=failing, weight=9.0, margin=0.1),
        ScriptedMember("c", "one two three four five", margin=0.1, **options),
    ]


STRATEGIES = {
    "adafuse": {},
    "beam": {"horizon": 3},
    "span": {"words": 1},
    "selective": {},
    "token_union": {},
    "rerank": {},
    "panel": {},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_on(strategy, caplog, monkeypatch):
    options, next_tokens = {"strategy": strategy, **STRATEGIES[strategy]}, ScriptedPrefix.next_tokens

    def failing(prefix, *arguments):
        if prefix.name == "b" and prefix.text:
            raise MemberError("scripted failure", member="b")
        return next_tokens(prefix, *arguments)

    monkeypatch.setattr(ScriptedPrefix, "next_tokens", failing)
    members = scripted(0 if strategy in ("rerank", "panel") else 1)
    with caplog.at_level(logging.WARNING):
        answer = Ensemble(members=members, on_member_failure="drop", **options).generate("go")
    assert [each.member for each in answer.dropped_members] == ["b"]
    assert answer.text.endswith("five")
    assert "without member 'b'" in caplog.text
    with pytest.raises(MemberError, match="scripted failure"):
        Ensemble(members=members, **options).generate("go")


def test_events_and_metadata_name_the_member(caplog):
    ensemble = Ensemble(members=scripted(), strategy="adafuse", on_member_failure="drop")
    events = list(ensemble.stream("go"))
    dropped = [event for event in events if isinstance(event, MemberDropped)]
    assert [event.to_dict()["type"] for event in dropped] == ["member_dropped"]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.dropped_members == tuple(dropped)
    assert finished.to_dict()["dropped_members"] == [{"member": "b", "error": dropped[0].error}]
    assert "dropped_members" not in Ensemble(members=scripted(None)).generate("go").trace.to_dict()
    assert [*ensemble.generate("go").trace.members] == ["a", "c", "b"]


def test_the_next_answer_tries_all_members_again():
    ensemble = Ensemble(members=scripted(), strategy="adafuse", on_member_failure="drop")
    for _ in range(2):
        answer = ensemble.generate("go")
        assert [len(played.drafts) for played in answer.rounds[:3]] == [3, 3, 2]


def test_a_member_that_can_not_be_opened_is_left_out(monkeypatch):
    members = scripted(None)

    def failing(opening):
        raise MemberError("no answer", member="b")

    monkeypatch.setattr(members[1], "open", failing)
    answer = Ensemble(members=members, on_member_failure="drop").generate("go")
    assert answer.text == "one two three four five"
    assert [each.member for each in answer.dropped_members] == ["b"]
    with pytest.raises(MemberError, match="no answer"):
        Ensemble(members=members).generate("go")


def test_members_of_other_places_are_not_used_while_they_still_work(monkeypatch):
    """The error of one member arrives while another one drafts, on another thread."""
    running, overlaps, draft = threading.Event(), [], ScriptedPrefix.draft

    def tracked(prefix, *arguments, **options):
        if prefix.name == "b":
            assert running.wait(10)
            raise MemberError("gone", member="b")
        overlaps.append(running.is_set())
        running.set()
        try:
            return draft(prefix, *arguments, **options)
        finally:
            running.clear()

    monkeypatch.setattr(ScriptedPrefix, "draft", tracked)
    members = [
        ScriptedMember("a", "one two", place="x", delay=0.05),
        ScriptedMember("b", "uno due", place="y"),
    ]
    answer = Ensemble(members=members, strategy="adafuse", on_member_failure="drop").generate("go")
    assert answer.text == "one two"
    assert not any(overlaps)


def test_the_error_is_raised_if_nobody_is_left():
    members = [
        ScriptedMember(name, "one two three", margin=0.1, fail_after=rounds)
        for name, rounds in {"a": 1, "b": 2}.items()
    ]
    with pytest.raises(MemberError, match="member 'b'") as caught:
        Ensemble(members=members, strategy="adafuse", on_member_failure="drop").generate("go")
    assert [each.member for each in caught.value.partial.dropped_members] == ["a"]


def test_the_error_is_raised_if_the_strategy_needs_the_member():
    for options in ({"anchor": "b"}, {"strategy": "selective", "drafter": "b"}):
        ensemble = Ensemble(members=scripted(), **{"strategy": "adafuse", **options}, on_member_failure="drop")
        with pytest.raises(MemberError, match="member 'b'") as caught:
            ensemble.generate("go")
        assert "can't go on without it" in caught.value.__notes__[0]


def test_other_errors_are_raised():
    members = [ScriptedMember("a", "one"), ScriptedMember("b", "one", context_window=2)]
    with pytest.raises(ContextOverflowError):
        Ensemble(members=members, on_member_failure="drop").generate("one two three")


def test_an_ensemble_that_can_do_without_no_member_is_refused():
    with pytest.raises(ConfigError, match=r"no member can be left out.*one member, 'a'"):
        Ensemble(members=["x/a"], on_member_failure="drop")
    with pytest.raises(ConfigError, match=r"no member can be left out.*one member, 'a'"):
        Ensemble(members=["x/a", "x/b"], strategy="single", on_member_failure="drop")
    with pytest.raises(ConfigError, match=r"no member can be left out.*at least 3 members"):
        Ensemble(members=["x/a", "x/b", "x/c"], strategy="consensus", on_member_failure="drop")
    with pytest.raises(ConfigError, match="on_member_failure='ignore'"):
        Ensemble(members=["x/a", "x/b"], on_member_failure="ignore")
    assert Ensemble(members=["x/a", "x/b"], strategy="adafuse", anchor="b", on_member_failure="drop").config
