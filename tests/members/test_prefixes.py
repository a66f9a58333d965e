"""Members of one place run in turn and share spans; places run in parallel."""

from __future__ import annotations

import threading

import pytest

from adafuse_core import Ensemble, ScriptedMember
from adafuse_core.errors import MemberError
from adafuse_core.members.base import Opening, WindowFull
from adafuse_core.members.prefixes import Prefixes
from adafuse_core.rounds import Draft, DraftPlan, Span

OPENING = Opening(prompt="go", max_word_tokens=24, cancel=threading.Event())
PLAN = DraftPlan(tau=0.5, max_words=1, branches=1)


class Recorded:
    """A prefix that records its calls, and can wait until others also run."""

    weight = 1.0

    def __init__(self, name, place, barrier=None, error=None):
        self.name, self.place = name, place
        self.barrier, self.error = barrier, error
        self.hints = None
        self.committed, self.closed = [], False

    def draft(self, plan, hints=()):
        self.hints = [span.text for span in hints]
        if self.barrier:
            self.barrier.wait(5)
        if self.error:
            raise self.error
        return Draft(member=self.name, spans=(Span(text=self.name),), margins=(1.0,))

    def score(self, spans):
        return [ord(self.name) + len(span.text) for span in spans]

    def commit(self, span):
        if self.barrier:
            self.barrier.wait(5)
        self.committed.append(span.text)

    def close(self):
        self.closed = True


def test_members_of_one_device_get_the_spans_of_earlier_members():
    prefixes = [Recorded(name, "cuda:0") for name in "abc"]
    drafts = Prefixes(prefixes).draft(PLAN)
    assert [draft.member for draft in drafts] == ["a", "b", "c"]
    assert [prefix.hints for prefix in prefixes] == [[], ["a"], ["a", "b"]]


def test_without_verification_there_are_no_hints():
    prefixes = [Recorded(name, "cuda:0") for name in "ab"]
    Prefixes(prefixes, verify=False).draft(PLAN)
    assert [prefix.hints for prefix in prefixes] == [[], []]


def test_devices_run_in_parallel_and_results_are_in_member_order():
    barrier = threading.Barrier(2)  # breaks unless a and b draft at once
    prefixes = [Recorded("a", "cuda:0", barrier), Recorded("b", "cuda:1", barrier), Recorded("c", "cuda:0")]
    drafts = Prefixes(prefixes).draft(PLAN)
    assert [draft.member for draft in drafts] == ["a", "b", "c"]
    assert [prefix.hints for prefix in prefixes] == [[], [], ["a"]]


def test_scores_are_one_row_per_span_in_the_order_of_members():
    prefixes = [Recorded("a", "cuda:0"), Recorded("b", "cuda:1"), Recorded("c", "cuda:0")]
    assert Prefixes(prefixes).score([Span(text=""), Span(text="x")]) == ((97, 98, 99), (98, 99, 100))


@pytest.mark.parametrize("error", [WindowFull(), MemberError("broken", member="b")])
def test_errors_on_another_device_are_raised(error):
    with pytest.raises(type(error)):
        Prefixes([Recorded("a", "cuda:0"), Recorded("b", "cuda:1", error=error)]).draft(PLAN)


class Openable:
    """A member of a place whose prefixes wait for the other place's."""

    def __init__(self, name, place, barrier=None, error=None):
        self.name, self.place, self.barrier, self.error = name, place, barrier, error
        self.prefix = Recorded(name, place)

    def open(self, opening):
        assert opening is OPENING
        if self.barrier:
            self.barrier.wait(5)
        if self.error:
            raise self.error
        return self.prefix


def test_places_open_and_commit_in_parallel():
    barrier = threading.Barrier(2)  # breaks unless both wait at once
    members = [Openable("a", "here", barrier), Openable("b", "there", barrier)]
    prefixes = Prefixes.opened(members, OPENING)
    assert [prefix.name for prefix in prefixes] == ["a", "b"]
    for prefix in prefixes:
        prefix.barrier = barrier
    prefixes.commit(Span(text="x"))
    assert [prefix.committed for prefix in prefixes] == [["x"], ["x"]]


@pytest.mark.parametrize("place", ["here", "there"])
def test_if_one_member_can_not_be_opened_the_others_are_closed(place):
    members = [Openable("a", "here"), Openable("b", place, error=MemberError("broken", member="b"))]
    with pytest.raises(MemberError, match="broken"):
        Prefixes.opened(members, OPENING)
    assert members[0].prefix.closed


def test_threads_of_places_end_with_the_request():
    before = set(threading.enumerate())
    prefixes = Prefixes([Recorded("a", "here"), Recorded("b", "there")])
    prefixes.draft(PLAN)
    started = [each for each in set(threading.enumerate()) - before if each.name.startswith("adafuse-place")]
    assert started
    prefixes.close()
    assert not any(each.is_alive() for each in started)
    assert all(prefix.closed for prefix in prefixes)


def test_an_ensemble_over_two_places_drafts_at_the_same_time_and_writes_the_same_text():
    scripts = ("one two three four", "one two 3 four")
    here = [ScriptedMember(name, script) for name, script in zip("ab", scripts, strict=True)]
    there = [ScriptedMember(name, script, place=name) for name, script in zip("ab", scripts, strict=True)]
    barrier, threads = threading.Barrier(2), set()
    for member in there:
        count = member.count_draft

        def waits(count=count):
            count()
            threads.add(threading.get_ident())
            barrier.wait(5)  # breaks unless the other place drafts too

        member.count_draft = waits
    assert Ensemble(members=there).generate("go").text == Ensemble(members=here).generate("go").text
    assert len(threads) >= 2
