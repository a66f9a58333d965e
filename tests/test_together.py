"""Members that share a device take turns and help each other; devices work at the same time."""

from __future__ import annotations

import threading

import pytest

from adafuse_core import Ensemble, ScriptedMember
from adafuse_core.errors import MemberError
from adafuse_core.members.base import WindowFull
from adafuse_core.rounds import Draft, DraftPlan, Span
from adafuse_core.strategies.together import draft_all, score_all

PLAN = DraftPlan(tau=0.5, max_words=1, branches=1)


class Recorded:
    """A prefix that notes what it is asked, and may wait for others to be at work too."""

    weight = 1.0

    def __init__(self, name, place, barrier=None, error=None):
        self.name, self.place = name, place
        self.barrier, self.error = barrier, error
        self.hints = None

    def draft(self, plan, hints=()):
        self.hints = [span.text for span in hints]
        if self.barrier:
            self.barrier.wait(5)
        if self.error:
            raise self.error
        return Draft(member=self.name, spans=(Span(text=self.name),), margins=(1.0,))

    def score(self, spans):
        return [ord(self.name) + len(span.text) for span in spans]


def test_members_of_one_device_get_the_spans_of_those_before_them():
    prefixes = [Recorded(name, "cuda:0") for name in "abc"]
    drafts = draft_all(prefixes, PLAN, verify=True)
    assert [draft.member for draft in drafts] == ["a", "b", "c"]
    assert [prefix.hints for prefix in prefixes] == [[], ["a"], ["a", "b"]]


def test_without_verifying_nobody_gets_hints():
    prefixes = [Recorded(name, "cuda:0") for name in "ab"]
    draft_all(prefixes, PLAN, verify=False)
    assert [prefix.hints for prefix in prefixes] == [[], []]


def test_devices_work_at_the_same_time_and_results_keep_the_order_of_members():
    barrier = threading.Barrier(2)  # breaks unless a and b draft at once
    prefixes = [Recorded("a", "cuda:0", barrier), Recorded("b", "cuda:1", barrier), Recorded("c", "cuda:0")]
    drafts = draft_all(prefixes, PLAN, verify=True)
    assert [draft.member for draft in drafts] == ["a", "b", "c"]
    assert [prefix.hints for prefix in prefixes] == [[], [], ["a"]]


def test_scores_are_one_row_per_span_in_the_order_of_members():
    prefixes = [Recorded("a", "cuda:0"), Recorded("b", "cuda:1"), Recorded("c", "cuda:0")]
    assert score_all(prefixes, [Span(text=""), Span(text="x")]) == ((97, 98, 99), (98, 99, 100))


@pytest.mark.parametrize("error", [WindowFull(), MemberError("broken", member="b")])
def test_what_fails_on_another_device_is_raised(error):
    with pytest.raises(type(error)):
        draft_all([Recorded("a", "cuda:0"), Recorded("b", "cuda:1", error=error)], PLAN, verify=True)


def test_an_ensemble_over_two_devices_writes_the_same_text():
    members = [ScriptedMember("a", "one two three four"), ScriptedMember("b", "one two 3 four")]
    together = Ensemble(members=members).generate("go").text
    for place, member in zip(("cuda:0", "cuda:1"), members, strict=True):
        open_ = member.open

        def placed(*arguments, place=place, open_=open_, **options):
            prefix = open_(*arguments, **options)
            prefix.place = place
            return prefix

        member.open = placed
    assert Ensemble(members=members).generate("go").text == together
