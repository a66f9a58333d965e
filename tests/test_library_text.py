"""Library text is marked everywhere, and long strings leave room for required fields."""

from __future__ import annotations

import json
import logging

import pytest

from adafuse_core import Ensemble, Finished, Grammar, LibraryText, RoundDone, ScriptedMember, TextDelta, ToolCall
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.thoughts import THINK

ASK = [{"role": "user", "content": "go"}]
LONG = "please handle with care and " * 30


def schema(**properties):
    kinds = {str: "string", int: "integer", bool: "boolean"}
    typed = {name: {"type": kinds[kind]} if isinstance(kind, type) else kind for name, kind in properties.items()}
    return {"type": "object", "properties": typed, "required": list(typed), "additionalProperties": False}


ORDER = schema(note=str, quantity=int, confirmed=bool)
SCRIPT = json.dumps({"note": LONG, "quantity": 12, "confirmed": True})
TOOL = {"type": "function", "function": {"name": "order", "parameters": ORDER}}


def scripted(reply, **options):
    return Ensemble(members=[ScriptedMember("m", reply, **options)])


def held(script, wanted, **options):
    """An answer with a JSON schema."""
    return scripted(script).generate("go", grammar=Grammar.json_schema(wanted), **options)


@pytest.mark.parametrize("budget", [13, 16, 20, 30, 60, 100])
def test_a_long_string_is_closed_before_required_fields(budget):
    answer = held(SCRIPT, ORDER, max_new_tokens=budget)
    value = json.loads(answer.text)
    assert (value["quantity"], value["confirmed"]) == (12, True)
    assert LONG.startswith(value["note"])
    assert value["note"]
    assert answer.reason == "length"
    (written,) = answer.library_text
    assert (written.text, written.fields) == ('"', ("note",))
    assert answer.usage.completion_tokens["m"] <= budget


LISTS = {
    "words": ({"type": "array", "items": {"type": "string"}}, ["a b"] * 40),
    "numbers": ({"type": "array", "items": {"type": "integer"}}, [12345] * 60),
    "objects": ({"type": "array", "items": schema(name=str, size=int)}, [{"name": "bolt of steel", "size": 3}] * 40),
    "nested": ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, [[1, 2], [3]] * 40),
    "keys": ({"type": "object", "additionalProperties": {"type": "integer"}}, {f"key {n}": n for n in range(60)}),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_long_list_is_closed_before_required_fields(name):
    kind, items = LISTS[name]
    script = json.dumps({"items": items, "count": 7, "done": True})
    budget = 100 if name == "objects" else 50  # objects are closed early
    answer = held(script, schema(items=kind, count=int, done=bool), max_new_tokens=budget)
    value = json.loads(answer.text)
    assert (value["count"], value["done"]) == (7, True)
    assert len(value["items"]) > 3
    whole = list(items.items())[: len(value["items"])] if isinstance(items, dict) else items[: len(value["items"])]
    kept = list(value["items"].items()) if isinstance(items, dict) else value["items"]
    assert kept[:-1] == whole[:-1]
    assert [text.kind for text in answer.library_text] == ["shortened"]


def test_several_long_strings_share_the_budget():
    script = json.dumps({"a": LONG, "b": LONG, "c": LONG, "n": 3})
    value = json.loads(held(script, schema(a=str, b=str, c=str, n=int), max_new_tokens=60).text)
    assert value["n"] == 3
    assert all(len(value[name].split()) >= 3 for name in "abc")


def test_a_long_thought_is_closed_before_the_answer():
    answer = scripted("hm " * 99 + '</think>{"a": 5, "b": true}').generate(
        "go", grammar=THINK.after_thought(Grammar.json_schema(schema(a=int, b=bool))), max_new_tokens=40
    )
    thought, answer_text = answer.text.split("</think>")
    assert set(thought.split()) == {"hm"}
    assert json.loads(answer_text) == {"a": 5, "b": True}
    assert [text.text for text in answer.library_text] == ["</think>"]


def test_an_answer_that_fits_is_unchanged():
    for words in (1, 5, 12):
        script = json.dumps({"note": " ".join(["word"] * words), "quantity": 12, "confirmed": True})
        answer = held(script, ORDER, max_new_tokens=32)
        assert (answer.text, answer.reason, answer.library_text) == (script, "stop", ())
        assert all(played.cut is None for played in answer.rounds)


def test_library_text_is_marked_in_result_events_and_round(caplog):
    with caplog.at_level(logging.WARNING, "adafuse_core"):
        events = list(scripted(SCRIPT).stream("go", grammar=Grammar.json_schema(ORDER), max_new_tokens=7))
    mark = LibraryText(
        text='", "quantity": 0, "confirmed": false}', kind="completed", fields=("note", "quantity", "confirmed")
    )
    assert events[-1].library_text == (mark,)
    (played,) = (event.round for event in events if isinstance(event, RoundDone) and event.round.library_text)
    assert (played.library_text, played.members_text, played.proposers) == (mark, '{"note": "', ())
    assert played.to_dict()["library_text"] == events[-1].to_dict()["library_text"][0]
    assert played.to_dict()["proposers"] == []
    assert "".join(event.text for event in events if isinstance(event, TextDelta)).endswith(mark.text)
    (record,) = caplog.records
    assert "quantity, confirmed" in record.getMessage()
    assert "max_new_tokens=7" in record.getMessage()


def test_text_of_members_and_forced_text_is_not_library_text(caplog):
    for script, wanted in ((json.dumps({"note": "hi", "quantity": 1, "confirmed": False}), ORDER), ('{"a": 1}', None)):
        grammar = Grammar.json_object() if wanted is None else Grammar.json_schema(wanted)
        events = list(scripted(script).stream("go", grammar=grammar))
        assert events[-1].library_text == ()
        assert "library_text" not in events[-1].to_dict()
        assert all(event.round.library_text is None for event in events if isinstance(event, RoundDone))
    constant = Grammar.json_schema({"const": {"all": "of this is certain"}})
    answer = scripted("").generate("go", grammar=constant, max_new_tokens=6)
    assert answer.library_text == ()
    assert not caplog.records


def test_a_number_is_never_cut_in_two():
    numbers = [10**9 + number for number in range(40)]
    for budget in range(16, 40):
        answer = held(json.dumps({"n": numbers, "x": 3}), schema(n=LISTS["numbers"][0], x=int), max_new_tokens=budget)
        assert json.loads(answer.text)["n"] == numbers[: len(json.loads(answer.text)["n"])]


def test_a_full_window_has_the_effects_of_a_spent_budget():
    for window in (14, 20, 30):
        answer = scripted(SCRIPT, context_window=window).generate(
            "go", grammar=Grammar.json_schema(ORDER), max_new_tokens=None
        )
        value = json.loads(answer.text)
        assert (value["quantity"], value["confirmed"]) == (12, True)
        assert answer.library_text


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("budget", [14, 18, 30])
def test_calls_with_library_text_are_invalid_without_complete_calls(dialect, budget):
    arguments = json.loads(SCRIPT)
    reply = DIALECTS[dialect].write([ToolCall(name="order", arguments=arguments)])
    options = {"tools": [TOOL], "tool_choice": "any", "max_new_tokens": budget}
    answer = scripted(reply, dialect=dialect).generate(ASK, **options)
    assert (answer.tool_calls, answer.reason) == ((), "length")
    (call,) = answer.invalid_tool_calls
    assert (call.name, call.arguments[:10]) == ("order", '{"note": "')
    assert '"quantity": 0' not in call.arguments
    assert "budget" in call.error
    assert repr(answer.library_text[-1].text)[1:-1] in call.error
    (call,) = scripted(reply, dialect=dialect).generate(ASK, **options, complete_calls=True).tool_calls
    assert call.arguments.keys() == arguments.keys()
    assert (budget < 30) or (call.arguments["quantity"], call.arguments["confirmed"]) == (12, True)


def test_a_complete_call_before_an_invalid_one_is_valid():
    short = {"note": "a", "quantity": 1, "confirmed": True}
    reply = DIALECTS["hermes"].write(
        [ToolCall(name="order", arguments=short), ToolCall(name="order", arguments=json.loads(SCRIPT))]
    )
    answer = scripted(reply).generate(ASK, tools=[TOOL], tool_choice="any", max_new_tokens=40)
    assert [call.arguments for call in answer.tool_calls] == [short]
    assert len(answer.invalid_tool_calls) == 1
    assert answer.reason == "length"


def test_a_stop_string_in_a_completed_answer_is_the_reason():
    answer = held(SCRIPT, ORDER, max_new_tokens=30, stop='"quantity"')
    assert answer.text.endswith('", ')
    assert (answer.reason, answer.stop) == ("stop", '"quantity"')
    assert isinstance(answer.library_text, tuple)


def test_deltas_of_calls_contain_no_library_text():
    reply = DIALECTS["hermes"].write([ToolCall(name="order", arguments=json.loads(SCRIPT))])
    events = list(scripted(reply).stream(ASK, tools=[TOOL], tool_choice="any", max_new_tokens=14))
    told = "".join(event.arguments for event in events if type(event).__name__ == "ToolCallDelta")
    assert "quantity" not in told
    assert isinstance(events[-1], Finished)
    assert events[-1].library_text[-1].kind == "completed"


@pytest.mark.parametrize("values", [["one", "two", "three four five six", "seven"], []], ids=["long", "empty"])
def test_library_text_may_close_a_list_and_begin_the_next_field(values):
    wanted = schema(tags={"type": "array", "items": {"type": "string"}}, note=str, quantity=int)
    script = json.dumps({"tags": values, "note": "hello there", "quantity": 5})
    for budget in range(6, 12):
        answer = held(script, wanted, max_new_tokens=budget)
        assert json.loads(answer.text).keys() == {"tags", "note", "quantity"}
        assert answer.usage.completion_tokens["m"] <= budget
