"""Answers that consist of calls are parsed in every known format; calls amid other text are not."""

from __future__ import annotations

import json

import pytest

from adafuse_core import ConfigError, Ensemble, Grammar, ToolCall
from adafuse_core.chat.dialects import DIALECTS
from adafuse_core.chat.tools import Tools
from adafuse_core.chat.written_calls import FORMS, WrittenCalls
from adafuse_core.events import TextDelta, ToolCallDelta, ToolCallDone
from adafuse_core.members.scripted import ScriptedMember

ASK = [{"role": "user", "content": "Book a room and tell me the time."}]
GUEST = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}
BOOK = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "nights": {"type": "integer", "minimum": 1},
        "guests": {"type": "array", "items": {"$ref": "#/$defs/Guest"}},
        "contact": {"anyOf": [{"$ref": "#/$defs/Guest"}, {"type": "null"}]},
    },
    "required": ["city", "nights"],
    "$defs": {"Guest": GUEST},
}
TOOLS = [
    {"type": "function", "function": {"name": "book_room", "parameters": BOOK}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
ARGUMENTS = {"city": 'São "P" {1}', "nights": 2}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
BARE = f'{{"name": "book_room", "arguments": {TEXT}}}'
OTHER = f'{{"name":"book_room","parameters":{TEXT}}}'
NOW = '{"name": "now", "arguments": {}}'
ONE, BOTH = [("book_room", ARGUMENTS)], [("book_room", ARGUMENTS), ("now", {})]

WRITTEN = {
    "JSON": [
        (BARE, ONE),
        (OTHER, ONE),
        (f"\n {BARE}\n", ONE),
        (json.dumps({"name": "book_room", "arguments": ARGUMENTS}, indent=2), ONE),
        (f'{{"arguments": {TEXT}, "name": "book_room"}}', ONE),
        (f'{{"type": "function", "name": "book_room", "parameters": {TEXT}}}', ONE),
        (f'{{"tool": "book_room", "args": {TEXT}, "id": "c1"}}', ONE),
        (f'{{"function": "book_room", "input": {TEXT}}}', ONE),
        (f'{{"action": "book_room", "action_input": {TEXT}}}', ONE),
        (json.dumps({"name": "book_room", "arguments": TEXT}), ONE),
        (json.dumps({"id": "c", "type": "function", "function": {"name": "book_room", "arguments": TEXT}}), ONE),
        (json.dumps({"tool_calls": [{"function": {"name": "book_room", "arguments": TEXT}}]}), ONE),
        (f"[{BARE}]", ONE),
        (f"[{BARE}, {NOW}]", BOTH),
        (f"{OTHER}\n{NOW}", BOTH),
        (f"{OTHER}; {NOW}", BOTH),
        (f"{OTHER}, {NOW}", BOTH),
        ('{"name": "now", "arguments": null}', [("now", {})]),
    ],
    "fenced JSON": [
        (f"```json\n{BARE}\n```", ONE),
        (f"```\n{OTHER}\n```\n", ONE),
        (f"```tool_call\n{BARE}\n```", ONE),
        (f"```JSON\n[{BARE}, {NOW}]\n```", BOTH),
        (f"```json\n{BARE}\n```\n\n```json\n{NOW}\n```", BOTH),
    ],
    "Hermes and Qwen": [
        (f"<tool_call>{OTHER}</tool_call>", ONE),
        (f"<tool_call>\n {BARE}\n</tool_call>\n<tool_call> {NOW} </tool_call>", BOTH),
        (f"<tool_call>\n[{BARE}]", ONE),
    ],
    "Qwen Coder": [
        (
            "<tool_call>\n<function=book_room>\n<parameter=city>\n12\n</parameter>\n<parameter=nights>\n2\n</parameter>\n"
            "</function>\n</tool_call>",
            [("book_room", {"city": "12", "nights": 2})],
        ),
        ("<function=now>\n</function>", [("now", {})]),
    ],
    "other tags": [(f"<tools>\n{BARE}\n</tools>", ONE), (f"<function_call> {BARE}", ONE)],
    "Llama": [(f"<|python_tag|>{OTHER}", ONE), (f"<|python_tag|>{OTHER}; {NOW}", BOTH)],
    "Llama, named": [
        (f"<function=book_room>{TEXT}</function>", ONE),
        (f"<function=book_room>{TEXT}</function>\n<function=now>{{}}</function>", BOTH),
        (f"<|python_tag|><function=book_room>{TEXT}", ONE),
    ],
    "Llama, Python": [
        ("[book_room(city='São \"P\" {1}', nights=2)]", ONE),
        ("[book_room(city='São \"P\" {1}', nights=2), now()]", BOTH),
        ("<|python_start|>[now()]<|python_end|>", [("now", {})]),
    ],
    "Gemma, Python": [("```tool_code\nbook_room(city='São \"P\" {1}', nights=2)\n```", ONE)],
    "Mistral": [
        (f"[TOOL_CALLS][{BARE}]", ONE),
        (f"[TOOL_CALLS] [{BARE}, {NOW}]", BOTH),
        (f"[TOOL_CALLS]{BARE}", ONE),
    ],
    "Mistral, named": [
        (f"[TOOL_CALLS]book_room[ARGS]{TEXT}", ONE),
        (f"[TOOL_CALLS]book_room[CALL_ID]a1B2c3D4e[ARGS]{TEXT}[TOOL_CALLS]now[ARGS]{{}}", BOTH),
        (f"[TOOL_CALLS]book_room{TEXT}", ONE),
    ],
    "Phi": [(f"functools[{BARE}]", ONE)],
}
TEXTS = [
    f"Sure: {BARE}",
    f"{BARE} - shall I?",
    f"{BARE}\nDone.",
    f"Like this:\n```json\n{BARE}\n```",
    f"```json\n{BARE}\n```\nThis books a room.",
    f"```json\n{BARE}",
    BARE[:-1],
    f"{BARE}}}",
    f"[{BARE}",
    f"[{BARE}, 3]",
    f"{BARE}\n{NOW[:-3]}",
    BARE.replace("book_room", "book_rooms"),
    BARE.replace("book_room", "Book_room"),
    f'{{"name": "book_room", "age": {TEXT}}}',
    '{"name": "book_room"}',
    '{"name": "now"}',
    f'{{"name": "book_room", "arguments": {TEXT}, "note": "x"}}',
    '{"name": "book_room", "arguments": {"city": "Oslo"}}',
    '{"name": "book_room", "arguments": {"city": "Oslo", "nights": "2"}}',
    '{"name": "book_room", "arguments": {"city": "Oslo", "nights": 0}}',
    '{"name": "book_room", "arguments": {"city": "Oslo", "nights": 1, "pet": 1}}',
    '{"name": "book_room", "arguments": [1]}',
    '{"name": "book_room", "arguments": "Oslo"}',
    "{\"name\": \"book_room\", \"arguments\": {'city': 'Oslo', 'nights': 1}}",
    '{"name": "book_room", "arguments": ' + "[" * 3000 + "]" * 3000 + "}",
    f"<function=cancel>{TEXT}</function>",
    f"[TOOL_CALLS]cancel[ARGS]{TEXT}",
    "[book_room('Oslo', 1)]",
    "[book_room(city=city, nights=1)]",
    "[book_room(**{'city': 'Oslo'}, nights=1)]",
    "book_room(city='Oslo', nights=1)",
    "```python\nbook_room(city='Oslo', nights=1)\n```",
    "[]",
    "{}",
    "[1, 2]",
    '{"answer": 42}',
    "",
    " \n",
]


def tools(**options):
    return Tools.of_request(TOOLS, "auto", options.get("parallel", True))


def read(text, **options):
    return [(call.name, call.arguments) for call in WrittenCalls(tools(**options)).read(text)]


def answer(reply, *, dialect="hermes", **options):
    return Ensemble(members=[ScriptedMember("m", reply, dialect=dialect)]).generate(ASK, tools=TOOLS, **options)


def test_every_form_has_its_examples():
    assert WRITTEN.keys() == FORMS.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_answer_in_this_form_is_its_calls(form):
    for text, calls in WRITTEN[form]:
        assert read(text) == calls, text


@pytest.mark.parametrize("form", FORMS)
def test_such_an_answer_may_be_calls_at_every_place(form):
    written = WrittenCalls(tools())
    for text, _ in WRITTEN[form]:
        assert all(written.may_become(text[:end]) for end in range(len(text) + 1)), text


@pytest.mark.parametrize("text", TEXTS)
def test_other_answers_stay_text(text):
    assert read(text) == []
    replied = answer(text)
    assert (replied.text, replied.tool_calls, replied.reason) == (text, (), "stop")


@pytest.mark.parametrize(
    ("text", "length"),
    [("Hi", 1), ('{"answer": 42}', 4), ('{"name": "Bob"}', 11), ("[1, 2]", 2), ("```python\nx", 11), ("<b>", 2)],
)
def test_text_is_held_back_only_while_it_may_be_a_call(text, length):
    written = WrittenCalls(tools())
    assert next(end for end in range(len(text) + 1) if not written.may_become(text[:end])) == length


def test_keys_may_come_in_any_order_also_within():
    guests = [{"age": 3, "name": "Ann"}, {"name": "Bo"}]
    arguments = {"contact": {"age": 40, "name": "Cy"}, "guests": guests, "nights": 1, "city": "Oslo"}
    assert read(json.dumps({"name": "book_room", "arguments": arguments})) == [("book_room", arguments)]


def test_a_schema_that_contains_itself_is_followed():
    node = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#"}}}
    tool = {"type": "function", "function": {"name": "walk", "parameters": node}}
    arguments = {"next": {"next": {"value": 3}, "value": 2}, "value": 1}
    written = WrittenCalls(Tools.of_request([tool], "auto", parallel=True))
    text = json.dumps({"name": "walk", "arguments": arguments})
    assert written.read(text) == [ToolCall(name="walk", arguments=arguments)]
    assert written.read(text.replace("3", '"3"')) == []


def begins_like_a_call_of(dialect, text):
    """Whether the grammar of a dialect constrains a text to the format of its calls."""
    return dialect.trigger in text if dialect.after_text else text.lstrip("\n").startswith(dialect.trigger)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_in_every_dialect(form, name):
    tried = [case for case in WRITTEN[form] if not begins_like_a_call_of(DIALECTS[name], case[0])]
    for text, calls in tried:
        replied = answer(text, dialect=name)
        assert (replied.text, replied.reason) == ("", "tool_calls")
        assert [(call.name, call.arguments) for call in replied.tool_calls] == calls
        assert len({call.id for call in replied.tool_calls}) == len(calls)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_both_common_keys_are_read_in_the_form_of_a_dialect(name, key):
    dialect = DIALECTS[name]
    other = dialect.write([ToolCall(name="now")]).replace(dialect.middle, f'", "{key}": ')
    replied = answer(other, dialect=name)
    assert (replied.text, replied.reason) == ("", "tool_calls")
    assert [(call.name, call.arguments) for call in replied.tool_calls] == [("now", {})]


def test_a_thought_may_come_before():
    replied = answer(f"<think>\nI book.\n</think>\n\n```json\n{BARE}\n```")
    assert (replied.reasoning, replied.text, len(replied.tool_calls)) == ("I book.", "", 1)


def test_the_option_turns_it_off():
    replied = answer(BARE, lenient_tool_calls=False)
    assert (replied.text, replied.tool_calls, replied.reason) == (BARE, (), "stop")
    with pytest.raises(ConfigError, match="lenient_tool_calls"):
        answer(BARE, lenient_tool_calls="yes")


def test_text_under_a_grammar_is_not_a_call():
    replied = answer(BARE, grammar=Grammar.json_object())
    assert (replied.text, replied.tool_calls) == (BARE, ())


def test_without_parallel_calls_only_the_first_is_kept():
    replied = answer(f"```json\n[{BARE}, {NOW}]\n```", parallel_tool_calls=False)
    assert [call.name for call in replied.tool_calls] == ["book_room"]


def test_without_tools_it_is_text():
    assert Ensemble(members=[ScriptedMember("m", BARE)]).generate(ASK).text == BARE


def test_a_call_that_the_budget_cuts_stays_text():
    replied = answer(BARE, max_new_tokens=4)
    assert (replied.reason, replied.tool_calls) == ("length", ())
    assert BARE.startswith(replied.text)
    assert replied.text


def test_events_are_those_of_any_call():
    events = list(Ensemble(members=[ScriptedMember("m", f"```json\n[{BARE}, {NOW}]\n```")]).stream(ASK, tools=TOOLS))
    assert not any(isinstance(event, TextDelta) for event in events)
    for index, (name, arguments) in enumerate(BOTH):
        pieces = [event for event in events if isinstance(event, ToolCallDelta) and event.index == index]
        (done,) = [event.call for event in events if isinstance(event, ToolCallDone) and event.index == index]
        assert (pieces[0].id, pieces[0].name) == (done.id, name)
        assert json.loads("".join(piece.arguments for piece in pieces)) == done.arguments == arguments
    assert events[-1].reason == "tool_calls"


def test_other_text_is_shown_as_it_comes():
    deltas = [
        event.text
        for event in Ensemble(members=[ScriptedMember("m", '{"answer": 42, "why": "so it is"}')]).stream(
            ASK, tools=TOOLS
        )
        if isinstance(event, TextDelta)
    ]
    assert len(deltas) > 1
    assert "".join(deltas) == '{"answer": 42, "why": "so it is"}'
