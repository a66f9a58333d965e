"""Stop strings match shown text only, not thoughts or calls; no round is decoded after a match."""

from __future__ import annotations

import pytest

from adafuse_core import Ensemble, Finished, Grammar, RoundDone, ScriptedMember, TextDelta, ToolCall
from adafuse_core.chat import thoughts
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.thoughts import THINK, ThoughtTags

ASK = [{"role": "user", "content": "Which one?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}


def answered(reply, prompt=ASK, **options):
    return Ensemble(members=[ScriptedMember("a", reply)]).generate(prompt, **options)


@pytest.mark.parametrize(
    ("stop", "text", "hit"),
    [("B:", "A: is right, not ", "B:"), ("\n", "A: is right, not B: I think.", "\n"), ("compare", None, None)],
)
def test_a_thought_may_contain_a_stop_string(stop, text, hit):
    answer = answered("<think>\nA: or B: - I compare.\n</think>\n\nA: is right, not B: I think.\nBye.", stop=[stop])
    assert answer.reasoning == "A: or B: - I compare."
    assert answer.text == (text or "A: is right, not B: I think.\nBye.")
    assert (answer.reason, answer.stop) == ("stop", hit)


def test_thoughts_in_other_tags_may_contain_a_stop_string(monkeypatch):
    square = ThoughtTags(opening="[THINK]", closing="[/THINK]")
    monkeypatch.setattr(thoughts, "TAGS", (THINK, square))
    member = ScriptedMember("a", "[THINK]one. two.[/THINK]Three. Four.")
    member.thought_tags = square
    answer = Ensemble(members=[member]).generate(ASK, stop=". ")
    assert (answer.reasoning, answer.text, answer.stop) == ("one. two.", "Three", ". ")


def test_a_stop_string_that_begins_in_a_thought_does_not_end_the_text():
    answer = answered("<think>hm a</think>b ab c", stop="ab")
    assert (answer.reasoning, answer.text, answer.stop) == ("hm a", "b ", "ab")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("choice", ["any", "auto"])
@pytest.mark.parametrize("stop", ["\n", "{", '"', "buy milk"])
def test_a_call_may_contain_a_stop_string(dialect, choice, stop):
    reply = DIALECTS[dialect].write([ToolCall(name="note", arguments={"text": "buy milk\nand {bread}"})])
    member = ScriptedMember("a", reply, dialect=dialect)
    answer = Ensemble(members=[member]).generate(ASK, tools=[TOOL], tool_choice=choice, stop=[stop])
    (call,) = answer.tool_calls
    assert call.arguments == {"text": "buy milk\nand {bread}"}
    assert (answer.text, answer.reason, answer.stop) == ("", "tool_calls", None)


def test_text_before_a_call_ends_at_a_stop_string_and_the_call_is_left_out():
    call = DIALECTS["hermes"].write([ToolCall(name="note", arguments={"text": "x"})])
    for reply in (f"I look. Now.\n{call}", f"I look.Now{call}"):
        answer = answered(reply, tools=[TOOL], stop="Now")
        assert (answer.text.strip(), answer.reason, answer.stop, answer.tool_calls) == ("I look.", "stop", "Now", ())


def test_held_back_text_comes_before_the_next_call():
    call = DIALECTS["hermes"].write([ToolCall(name="note", arguments={"text": "x"})])
    ensemble = Ensemble(members=[ScriptedMember("a", f"I see: Ob{call}")])
    events = list(ensemble.stream(ASK, tools=[TOOL], stop="Observation"))
    kinds = [type(event).__name__ for event in events if not isinstance(event, RoundDone)]
    assert kinds.index("ToolCallDelta") > max(at for at, kind in enumerate(kinds) if kind == "TextDelta")
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "I see: Ob"


@pytest.mark.parametrize("prompt", ["go", ASK])
@pytest.mark.parametrize("logprobs", [False, True])
def test_no_round_is_decoded_beyond_a_stop_string(prompt, logprobs):
    member = ScriptedMember("a", "one two three four five six seven eight nine")
    answer = Ensemble(members=[member]).generate(prompt, stop="three", logprobs=logprobs)
    assert (answer.text, answer.reason, answer.stop) == ("one two ", "stop", "three")
    assert member.drafts == len(answer.rounds) == answer.usage.rounds == 3
    assert answer.usage.completion_tokens == {"a": 3}


def test_no_round_is_decoded_beyond_a_stop_string_after_a_thought():
    member = ScriptedMember("a", "<think>hm three hm</think>one two three four five")
    answer = Ensemble(members=[member]).generate(ASK, stop="three")
    assert (answer.text, answer.stop, member.drafts) == ("one two ", "three", 5)


def test_a_stop_string_in_the_word_that_exhausts_the_budget_still_counts():
    for budget, reason in ((1, "length"), (2, "stop"), (3, "stop")):
        answer = answered("one two three", stop="two", max_new_tokens=budget)
        assert (answer.text.strip(), answer.reason) == ("one", reason)


def test_held_back_text_is_shown_at_the_end_of_the_budget():
    answer = answered("one two three four", stop="two three six", max_new_tokens=3)
    assert (answer.text, answer.reason, answer.stop) == ("one two three", "length", None)


def test_stop_strings_cut_text_under_a_grammar():
    grammar = Grammar.json_schema({"type": "array", "items": {"type": "integer"}})
    answer = answered("[1, 2, 3]", grammar=grammar, stop=", 3")
    assert (answer.text, answer.reason, answer.stop) == ("[1, 2", "stop", ", 3")
    answer = answered("[1, 2, 3]", grammar=grammar, stop="\n")
    assert (answer.text, answer.reason, answer.stop) == ("[1, 2, 3]", "stop", None)


def test_the_end_comes_after_the_round_that_a_stop_string_ends():
    events = list(Ensemble(members=[ScriptedMember("a", "one two three")]).stream("go", stop="two"))
    assert [type(event) for event in events] == [TextDelta, RoundDone, TextDelta, RoundDone, Finished]
