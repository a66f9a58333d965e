"""Errors contain the partial answer."""

from __future__ import annotations

import pickle
import threading

import pytest

from adafuse_core import (
    CancelledError,
    ConfigError,
    DeadlineError,
    Ensemble,
    MemberError,
    RoundDone,
    ScriptedMember,
    TextDelta,
    ToolCall,
)
from adafuse_core.chat.dialects import SHARED
from adafuse_integrations.common.running_calls import RunningCalls

ASK = [{"role": "user", "content": "go"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}


class Cancelling(ScriptedMember):
    """Cancels the generation after a number of drafts."""

    def __init__(self, reply, drafts, cancel):
        super().__init__("a", reply)
        self._cancel, self._left = cancel, drafts

    def count_draft(self):
        super().count_draft()
        self._left -= 1
        if not self._left:
            self._cancel.set()


@pytest.mark.parametrize("prompt", ["go", ASK])
def test_a_cancelled_answer_is_in_the_error(prompt):
    cancel = threading.Event()
    ensemble = Ensemble(members=[Cancelling("one two three four", 3, cancel)])
    with pytest.raises(CancelledError) as caught:
        ensemble.generate(prompt, cancel=cancel)
    partial = caught.value.partial
    assert (partial.text, partial.reason, partial.stop) == ("one two three", "cancelled", None)
    assert [played.span.text for played in partial.rounds] == ["one", " two", " three"]
    assert partial.usage.completion_tokens == {"a": 3}


def test_an_answer_in_which_a_member_fails_is_in_the_error():
    ensemble = Ensemble(members=[ScriptedMember("a", "one two three", fail_after=2)])
    with pytest.raises(MemberError, match="scripted failure") as caught:
        ensemble.generate("go")
    assert (caught.value.partial.text, caught.value.partial.reason) == ("one two", "error")
    assert caught.value.member == "a"


def test_held_back_text_thoughts_and_calls_are_in_the_partial_answer():
    call = SHARED.write([ToolCall(name="f", arguments={"a": "x y z"})])
    replies = {
        "<think>hm hm hm hm": ("hm hm hm", "", 0),
        "one two Obs three": ("", "one two Obs", 0),
        f"I look.\n{call}": ("", "I look.", 1),
    }
    for reply, expected in replies.items():
        ensemble = Ensemble(members=[ScriptedMember("a", reply, fail_after=3)])
        with pytest.raises(MemberError) as caught:
            ensemble.generate(ASK, tools=[TOOL], stop="Observation:")
        partial = caught.value.partial
        assert (partial.reasoning, partial.text, len(partial.invalid_tool_calls)) == expected


def test_a_stream_raises_the_same_error_and_shows_nothing_after_it_was_cancelled():
    cancel = threading.Event()
    ensemble = Ensemble(members=[ScriptedMember("a", "one two three")])
    stream = ensemble.stream(ASK, cancel=cancel)
    assert [next(stream), type(next(stream))] == [TextDelta(text="one"), RoundDone]
    cancel.set()
    with pytest.raises(CancelledError) as caught:
        next(stream)
    assert caught.value.partial.text == "one"


def test_errors_before_the_first_round_have_no_partial_answer():
    with pytest.raises(ConfigError) as caught:
        Ensemble(members=[ScriptedMember("a", "one")]).generate("go", temprature=1)
    assert caught.value.partial is None


def test_a_batch_that_fails_carries_all_answers():
    replies = {"x": "one two", "y": "three four five", "z": "six"}
    member = ScriptedMember("a", replies.__getitem__, fail_after=2)
    with pytest.raises(MemberError) as caught:
        Ensemble(members=[member]).batch(["x", "y", "z"], max_concurrency=1)
    assert caught.value.partial.text == "three four"
    whole, partial, *_ = caught.value.partials
    assert (whole.text, whole.reason, partial.text, partial.reason) == ("one two", "stop", "three four", "error")
    assert len(caught.value.partials) == 3


def test_answers_cancelled_by_another_failure_of_the_batch_are_kept():
    begun = threading.Event()

    class Slow(ScriptedMember):
        """Continues until the other prompt has failed."""

        def count_draft(self):
            super().count_draft()
            begun.set()

    def reply(prompt):
        if prompt == "bad":
            begun.wait(10)
            raise MemberError("no such prompt", member="a")
        return "one "

    member = Slow("a", reply, delay=0.001, ends_answer=False)
    with pytest.raises(MemberError, match="no such prompt") as caught:
        Ensemble(members=[member]).batch(["slow", "bad"], max_new_tokens=None)
    slow, none = caught.value.partials
    assert none is None
    assert (slow.text[:4], slow.reason) == ("one ", "cancelled")


def test_a_deadline_error_has_the_partial_answer():
    ensemble = Ensemble(members=[ScriptedMember("a", "one two three", delay=30)])
    with pytest.raises(DeadlineError) as caught, RunningCalls().track(0.05) as cancel:
        ensemble.generate("go", cancel=cancel)
    assert caught.value.partial.text == ""
    assert caught.value.partial.reason == "cancelled"


def test_errors_with_answers_can_be_pickled():
    with pytest.raises(MemberError) as caught:
        Ensemble(members=[ScriptedMember("a", "one two", fail_after=1)]).generate("go")
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.partial == caught.value.partial
    assert str(again) == str(caught.value)
