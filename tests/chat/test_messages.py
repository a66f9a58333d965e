"""Conversations from dictionaries: accepted and refused values; nothing is silently dropped."""

from __future__ import annotations

import pytest

from adafuse_core.calls import ToolCall
from adafuse_core.chat.messages import Message, conversation
from adafuse_core.errors import PromptError


def call(arguments, name="add", **options):
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}, **options}


def assistant(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_every_role_is_taken(role):
    assert Message.from_any({"role": role, "content": "x"}) == Message(role=role, content="x")


@pytest.mark.parametrize("role", ["human", "", None, 3, "User", ["user"]])
def test_other_roles_are_refused_with_the_known_ones(role):
    with pytest.raises(PromptError, match="system, user, assistant, tool"):
        Message.from_any({"role": role, "content": "x"})


@pytest.mark.parametrize("value", [None, "hi", 3, ["user", "hi"], ("user", "hi")])
def test_other_values_as_messages_are_refused(value):
    with pytest.raises(PromptError, match="expected a dict"):
        Message.from_any(value)


@pytest.mark.parametrize("key", ["text", "function_call", 3])
def test_unknown_keys_are_refused_not_dropped(key):
    with pytest.raises(PromptError, match=str(key)):
        Message.from_any({"role": "user", "content": "x", key: 1})


def test_several_unknown_keys_of_several_types_are_refused():
    with pytest.raises(PromptError, match="unknown"):
        Message.from_any({"role": "user", "content": "x", "a": 1, 3: 1})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        (" a\n", " a\n"),
        ([], ""),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], "a b"),
        (({"type": "text", "text": "a"},), "a"),
    ],
)
def test_content_is_kept_to_the_byte(content, text):
    assert Message.from_any({"role": "user", "content": content}).content == text


@pytest.mark.parametrize(
    "content",
    [
        3,
        {"text": "a"},
        b"a",
        ["a"],
        [{"type": "image_url", "image_url": {"url": "x"}}],
        [{"type": "text"}],
        [{"type": "text", "text": None}],
        [None],
    ],
)
def test_other_content_is_refused(content):
    with pytest.raises(PromptError, match="content"):
        Message.from_any({"role": "user", "content": content})


@pytest.mark.parametrize("arguments", [{"a": 1, "b": "é"}, '{"a": 1, "b": "é"}', '{"a": 1, "b": "\\u00e9"}'])
def test_arguments_are_read_from_a_dict_and_from_json(arguments):
    (read,) = Message.from_any(assistant(call(arguments))).tool_calls
    assert read == ToolCall(name="add", arguments={"a": 1, "b": "é"}, id="c1")


def test_tool_calls_in_the_short_form_are_read():
    (read,) = Message.from_any(assistant({"name": "now", "arguments": {}})).tool_calls
    assert read == ToolCall(name="now")
    assert Message.from_any(assistant({"name": "now"})).tool_calls == (read,)
    assert Message.from_any(assistant(read)).tool_calls == (read,)


@pytest.mark.parametrize(
    "broken",
    [
        call("{"),
        call("[1]"),
        call("null"),
        call(None),
        call([1]),
        call({}, name=None),
        call({}, name=3),
        {"function": None},
        {"function": "add"},
        {},
        "add",
        None,
        3,
    ],
)
def test_broken_tool_calls_are_refused(broken):
    with pytest.raises(PromptError, match="tool call"):
        Message.from_any(assistant(broken))


@pytest.mark.parametrize("calls", [3, "add", {"name": "add"}])
def test_tool_calls_that_are_no_list_are_refused(calls):
    with pytest.raises(PromptError, match="tool call"):
        Message.from_any({"role": "assistant", "content": "", "tool_calls": calls})


def test_no_tool_calls_are_written_as_none_or_an_empty_list():
    for calls in (None, []):
        assert Message.from_any({"role": "assistant", "content": "x", "tool_calls": calls}).tool_calls == ()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call({"a": [1, None]})]},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    ],
)
def test_a_message_comes_back_as_the_dictionary_it_was(message):
    assert Message.from_any(message).to_dict() == message
    assert Message.from_any(Message.from_any(message)).to_dict() == message


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": " \n"}, {"role": "assistant", "content": None}],
    ],
)
def test_a_conversation_without_text_is_refused(messages):
    with pytest.raises(PromptError, match="empty") as caught:
        conversation(messages)
    assert caught.value.hint


def test_a_conversation_of_tool_calls_alone_is_allowed():
    assert len(conversation([assistant(call({}))])) == 1


def test_a_conversation_takes_dictionaries_and_messages_in_any_mix():
    assert conversation([{"role": "user", "content": "a"}, Message(role="assistant", content="b")]) == (
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
    )


def test_a_single_message_in_place_of_a_list_is_refused():
    with pytest.raises(PromptError, match="expected a dict"):
        conversation({"role": "user", "content": "a"})


@pytest.mark.parametrize(
    "call",
    [
        {"function": {"name": "f", "arguments": '{"a": ' + "9" * 5000 + "}"}},
        {"function": {"name": "f", "arguments": "[" * 100_000}},
        {"function": {"name": "f", "arguments": {"a": "\ud83d"}}},
        {"function": {"name": "f", "arguments": {}}, "id": {}},
    ],
)
def test_calls_that_no_template_can_show_are_refused(call):
    with pytest.raises(PromptError):
        Message.from_any({"role": "assistant", "tool_calls": [call]})
