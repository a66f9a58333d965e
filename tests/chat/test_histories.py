"""Histories as frameworks send them: every order of roles is rendered, with earlier calls as JSON."""

from __future__ import annotations

import itertools
import json
import logging
import re

import pytest

from adafuse_core.calls import ToolCall
from adafuse_core.chat.call_shapes import one_call_per_turn, with_short_ids
from adafuse_core.chat.messages import Message, conversation
from adafuse_core.chat.templates import render_chat
from adafuse_core.errors import TemplateError
from tests import tiny
from tests.chat import test_templates as plainer
from tests.chat.model_templates import MODELS

TOKENIZER = tiny.byte_level()
TOKENIZER.bos_token = "<|endoftext|>"
TEMPLATES = {**plainer.TEMPLATES, **MODELS}
ARGUMENTS = {"on": True, "off": False, "x": None, "n": 3, "f": 2.5, "who": 'd\'Arc "J"', "deep": {"a": [1, None, "b"]}}
TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)


def render(name, messages, **options):
    TOKENIZER.chat_template = TEMPLATES.get(name, name)
    return render_chat(TOKENIZER, conversation(messages), member="m", **options)


def user(content):
    return Message(role="user", content=content)


def assistant(content="", *calls):
    return Message(role="assistant", content=content, tool_calls=calls)


def system(content):
    return Message(role="system", content=content)


def result(content, call_id=None, name=None):
    return Message(role="tool", content=content, tool_call_id=call_id, name=name)


def call(arguments=ARGUMENTS, name="set_light", call_id="call_AbCdEf123456"):
    return ToolCall(name=name, arguments=arguments, id=call_id)


CALLED = [user("Light!"), assistant("", call()), result("done-1", "call_AbCdEf123456"), user("Thanks.")]


# -- every order of roles ----------------------------------------------------------------------------------------------

HISTORIES = {
    "ends with the assistant": [user("u1"), assistant("a1")],
    "two assistants": [user("u1"), assistant("a1"), assistant("a2")],
    "ends with a called agent": [user("u1"), assistant("", call()), result("r1", "call_AbCdEf123456"), assistant("a1")],
    "system in the middle": [user("u1"), system("s1"), assistant("a1"), user("u2")],
    "several systems": [system("s1"), system("s2"), user("u1"), system("s3")],
    "system at the end": [user("u1"), assistant("a1"), system("s1")],
    "system and assistant": [system("s1"), assistant("a1")],
    "only a system": [system("s1")],
    "only an assistant": [assistant("a1")],
    "assistant first": [assistant("a1"), user("u1")],
    "users in a row": [user("u1"), user("u2"), user("u3")],
    "an empty user": [user("u1"), assistant("a1"), user("")],
    "an empty assistant": [user("u1"), assistant(""), user("u2")],
    "ends with an empty assistant": [user("u1"), assistant("")],
    "a result without a call": [user("u1"), result("r1", "call_x", "set_light")],
    "only a result": [result("r1", "call_x")],
    "a call without a result": [user("u1"), assistant("a1", call()), user("u2")],
    "ends with a call": [user("u1"), assistant("a1", call())],
    "results in another order": [
        user("u1"),
        assistant("", call({"n": 1}, call_id="c1"), call({"n": 2}, call_id="c2")),
        result("r2", "c2"),
        result("r1", "c1"),
    ],
    "a user between call and result": [
        user("u1"),
        assistant("", call()),
        user("u2"),
        result("r1", "call_AbCdEf123456"),
    ],
    "a system after a result": [user("u1"), assistant("", call()), result("r1", "call_AbCdEf123456"), system("s1")],
}


def texts(messages):
    return [message.content for message in messages if message.content]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("history", HISTORIES)
def test_every_order_of_roles_is_rendered_whole(history, name):
    messages = HISTORIES[history]
    text = render(name, messages)
    for content in texts(messages):
        assert content in text
    for made in (made for message in messages for made in message.tool_calls):
        assert made.name in text


@pytest.mark.parametrize("name", TEMPLATES)
def test_short_histories_of_every_order_are_rendered_whole(name):
    parts = {"s": system("S."), "u": user("U."), "a": assistant("A."), "e": assistant(""), "t": result("T.", "c")}
    for order in (order for size in (1, 2, 3) for order in itertools.product(parts, repeat=size)):
        messages = [parts[part] for part in order]
        if texts(messages):
            text = render(name, messages)
            assert all(text.count(content) >= texts(messages).count(content) for content in texts(messages)), order


@pytest.mark.parametrize("name", TEMPLATES)
def test_after_the_assistant_a_new_turn_begins(name):
    if name == "concatenates":  # has no generation prompt
        return
    text = render(name, [user("one"), assistant("two")])
    asked = render(name, [user("one"), assistant("two"), user("three")])
    opening = asked[asked.index("three") + len("three") :]
    assert text.endswith(opening)
    assert text.index("two") < len(text) - len(opening)


@pytest.mark.parametrize(("name", "empty"), [("mistral", "[INST] [/INST]"), ("brackets", "[INST]  [/INST]")])
def test_an_empty_user_message_is_added_if_the_template_needs_one(name, empty):
    assert render(name, [user("one"), assistant("two")]).endswith(empty)


# -- continuing the last turn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_message_is_continued_on_request(name):
    text = render(name, [user("one"), assistant("Once upon")], continues=True)
    assert text.endswith("Once upon")
    assert "one" in text
    last = render(name, [user("one"), assistant("a"), assistant("b")], continues=True)
    assert last.endswith("b")


def test_a_template_that_shows_no_end_of_the_last_turn_can_not_continue_it():
    with pytest.raises(TemplateError, match="can't render"):
        render("{{ messages[0]['content'] }}", [user("one"), assistant("two")], continues=True)


# -- earlier calls -----------------------------------------------------------------------------------------------------


def values_in(text):
    """All JSON objects in a text."""
    decoder = json.JSONDecoder()
    found = []
    for match in re.finditer("{", text):
        try:
            found.append(decoder.raw_decode(text, match.start())[0])
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("name", ["hermes", "qwen", "llama", "mistral", "deepseek", "full tools", "concatenates"])
def test_earlier_calls_are_json_in_the_templates_own_way(name, caplog):
    with caplog.at_level(logging.INFO):
        text = render(name, CALLED)
    assert ARGUMENTS in values_in(text)
    assert str(ARGUMENTS) not in text
    assert "Call of" not in text
    assert "Result of" not in text
    assert not caplog.records


def test_a_template_that_prints_arguments_one_by_one_gets_json_values():
    text = render("qwen coder", CALLED)
    for key, value in ARGUMENTS.items():
        written = value if isinstance(value, str) else json.dumps(value)
        assert f"<parameter={key}>\n{written}\n</parameter>" in text


def test_a_template_that_dumps_sorted_or_indented_json_is_whole():
    for options in ("indent=2", "separators=(',', ':')", "ensure_ascii=true"):
        template = MODELS["hermes"].replace("arguments | tojson", f"arguments | tojson({options})")
        assert ARGUMENTS in values_in(render(template, CALLED))


@pytest.mark.parametrize("name", ["gemma", "chatml", "brackets"])
def test_calls_become_plain_text_without_template_support_and_the_log_says_so(name, caplog):
    with caplog.at_level(logging.INFO):
        text = render(name, CALLED)
    assert f"Call of set_light: {TEXT}" in text
    (record,) = caplog.records
    assert "member 'm': earlier tool calls and results are shown as text" in record.getMessage()


def test_a_template_that_hides_arguments_is_not_whole():
    template = MODELS["hermes"].replace("{{ tool_call.arguments | tojson }}", "...")
    assert f"Call of set_light: {TEXT}" in render(template, CALLED)
    first = MODELS["hermes"].replace("tool_call.arguments | tojson", "tool_call.arguments['n'] | tojson")
    assert f"Call of set_light: {TEXT}" in render(first, CALLED)


def test_arguments_in_other_messages_only_count_as_dropped():
    template = MODELS["hermes"].replace("{{ tool_call.arguments | tojson }}", "...")
    assert "Call of set_light: " in render(template, [user(f"Do {TEXT}"), *CALLED])


def test_short_ids_of_calls_and_results_match():
    calls = [call({"n": number}, call_id=f"toolu_01{number}") for number in range(2)]
    messages = [
        user("Go."),
        assistant("", *calls),
        result("one", "toolu_011"),
        result("zero", "toolu_010"),
        assistant("", call({"n": 2}, call_id=None)),
        result("two"),
        user("So?"),
    ]
    text = render("mistral", messages)
    ids = {value["arguments"]["n"]: value["id"] for value in values_in(text) if "id" in value}
    results = {value["content"]: value["call_id"] for value in values_in(text) if "call_id" in value}
    assert len(set(ids.values())) == 3
    assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", each) for each in ids.values())
    assert results == {"zero": ids[0], "one": ids[1], "two": ids[2]}


def test_ids_are_unchanged_if_the_template_accepts_them():
    messages = [user("Go."), assistant("", call(call_id="abcdef012")), result("ok", "abcdef012"), user("So?")]
    assert '"call_id": "abcdef012"' in render("mistral", messages)


def test_ids_do_not_change_while_a_conversation_grows():
    turns = [
        message
        for number in range(3)
        for message in (assistant("", call({"n": number}, call_id=f"c{number}")), result("ok", f"c{number}"))
    ]
    grown = with_short_ids(turns)
    for length in range(len(turns)):
        assert with_short_ids(turns[:length]) == grown[:length]


def test_results_without_ids_answer_calls_of_their_tool_in_order():
    turns = [
        assistant("", call(name="f", call_id=None), call(name="g", call_id=None), call(name="f", call_id=None)),
        result("1", name="g"),
        result("2", name="f"),
        result("3"),
        result("4", "unknown"),
    ]
    renamed = with_short_ids(turns)
    first, second, third = (made.id for made in renamed[0].tool_calls)
    assert [turn.tool_call_id for turn in renamed[1:4]] == [second, first, third]
    assert renamed[4].tool_call_id not in (first, second, third)
    assert len({turn.tool_call_id for turn in renamed[1:]}) == 4


def test_several_calls_become_several_turns_where_a_template_takes_one():
    calls = [call({"n": number}, call_id=f"c{number}") for number in range(3)]
    messages = [user("Go."), assistant("", *calls), *(result(f"r{number}", f"c{number}") for number in range(3))]
    text = render("llama", messages)
    assert [value["parameters"]["n"] for value in values_in(text) if "parameters" in value] == [0, 1, 2]
    assert "Call of" not in text
    assert text.index('{"n": 0}') < text.index("r0") < text.index('{"n": 1}') < text.index("r1") < text.index("r2")


def test_one_call_per_turn_keeps_everything():
    calls = [call({"n": number}, call_id=f"c{number}") for number in range(3)]
    turns = one_call_per_turn([assistant("Wait.", *calls), result("r0", "c0"), user("u")])
    assert [turn.content for turn in turns] == ["Wait.", "r0", "", "", "u"]
    assert [made.id for turn in turns for made in turn.tool_calls] == ["c0", "c1", "c2"]
    assert all(len(turn.tool_calls) <= 1 for turn in turns)


def test_templates_without_calls_render_a_plain_history_once():
    tokenizer = tiny.byte_level()
    rendered = []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: rendered.append(args) or apply(*args, **kwargs)
    render_chat(tokenizer, conversation([user("a"), assistant("b"), user("c")]))
    assert len(rendered) == 1
