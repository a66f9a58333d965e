"""OpenAI's formats as clients send them."""

from __future__ import annotations

import pytest

from adafuse_core import ConfigError, Message, PromptError, ToolCall
from adafuse_core.chat import openai
from adafuse_core.chat.grammar import Grammar

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = {  # as a server returns it, and a client sends it back with the next question
    "role": "assistant",
    "content": None,
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "reasoning_content": "hm",
    "tool_calls": [
        {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    ],
}


def test_a_conversation_is_read_with_all_that_clients_send_back():
    assert openai.messages(
        [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Weather?", "name": "ann"},
            ANSWER,
            {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"},
            Message(role="user", content="Thanks."),
        ]
    ) == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Weather?", name="ann"),
        Message(role="assistant", tool_calls=(ToolCall(name="f", arguments={"city": "Rome"}, id="c1"),)),
        Message(role="tool", tool_call_id="c1", content="12 degrees", name="f"),
        Message(role="user", content="Thanks."),
    ]


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("ai", "assistant"), ("developer", "system"), ("function", "tool"), ("user", "user")],
)
def test_roles_have_several_names(name, role):
    assert openai.role(name) == openai.message({"role": name, "content": "x"}).role == role


@pytest.mark.parametrize("name", ["critic", None, 3, ["user"]])
def test_other_roles_are_refused(name):
    with pytest.raises(PromptError, match="role"):
        openai.message({"role": name, "content": "x"})


@pytest.mark.parametrize(
    "parts",
    [
        {"content": None, "refusal": "I can't."},
        {"content": [{"type": "refusal", "refusal": "I can't."}]},
        {"content": "I ", "refusal": "can't."},
        {"content": [{"type": "text", "text": "I "}, {"type": "refusal", "refusal": "can't."}], "refusal": ""},
    ],
)
def test_refusals_are_part_of_the_text(parts):
    assert openai.message({"role": "assistant", **parts}).content == "I can't."


def test_function_calls_are_tool_calls():
    turn = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    result = {"role": "function", "name": "f", "content": "1"}
    called, told = openai.messages([turn, result])
    assert called.tool_calls == (ToolCall(name="f", arguments={}),)
    assert told == Message(role="tool", name="f", content="1")


@pytest.mark.parametrize(
    ("role", "parts", "problem"),
    [
        ("assistant", {"audio": {"id": "audio_1"}}, "audio"),
        ("user", {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
        ("user", {"content": "x", "refusal": "no"}, "refusal"),
        ("user", {"content": "x", "wieght": 0}, "wieght"),
        ("assistant", {"tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}}]}, "custom"),
        ("assistant", {"content": [{"type": "refusal"}]}, "refusal"),
        ("assistant", {"content": 3}, "3"),
    ],
)
def test_content_that_would_be_lost_is_refused(role, parts, problem):
    with pytest.raises(PromptError, match=problem):
        openai.message({"role": role, **parts})


def test_other_values_as_messages_are_refused():
    with pytest.raises(PromptError, match="expected a dict"):
        openai.message("hello")


def test_a_dictionary_of_the_caller_is_not_changed():
    given = {**ANSWER, "content": [{"type": "text", "text": "x"}]}
    before = repr(given)
    openai.message(given)
    assert repr(given) == before


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        (False, None),
        (True, "any"),
        ("auto", "auto"),
        ("required", "any"),
        ("any", "any"),
        ("none", "none"),
        ("f", "f"),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"type": "tool", "name": "f"}, "f"),
        ({"function": {"name": "f"}}, "f"),
        ({"name": "f"}, "f"),
        ({"type": "any"}, "any"),
        ({"type": "auto"}, "auto"),
        ({"type": "required"}, "any"),
        ({"type": "none"}, "none"),
    ],
)
def test_every_form_of_a_tool_choice_is_understood(given, meant):
    assert openai.tool_choice(given) == meant


@pytest.mark.parametrize(
    "given", [3, "", ["any"], {}, {"mode": "any"}, {"type": "any", "disable_parallel_tool_use": True}, {"name": ""}]
)
def test_other_tool_choices_are_refused(given):
    with pytest.raises(ConfigError, match="tool_choice"):
        openai.tool_choice(given)


def test_a_tool_has_what_members_are_told():
    told = openai.function_tool({"type": "function", "function": {"name": "f", "description": None}})
    assert told["function"] == {"name": "f", "description": "", "parameters": openai.NO_PARAMETERS}
    strict = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
    assert openai.function_tool({"type": "function", "function": strict})["function"] == strict


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"returns": {}}, "'returns'"),
        ({"description": 5}, "'description': 5"),
        ({"strict": "yes"}, "'strict': 'yes'"),
        ({"parameters": []}, "'parameters'"),
        ({"parameters": {"const": {1}}}, "not plain JSON"),
        ({"description": "\ud800"}, "not valid Unicode"),
    ],
)
def test_parts_of_a_function_that_no_member_is_told_are_refused(part, problem):
    with pytest.raises(ConfigError, match=problem):
        openai.function_tool({"type": "function", "function": {"name": "f", **part}})


@pytest.mark.parametrize("tool", [{"type": "web_search"}, {"type": "function", "function": {}}, "f", None])
def test_a_tool_that_only_a_provider_could_run_is_refused(tool):
    with pytest.raises(ConfigError, match="expected a function"):
        openai.function_tool(tool)


def test_response_formats_are_grammars():
    assert openai.response_grammar(None) is openai.response_grammar({"type": "text"}) is None
    assert openai.response_grammar({"type": "json_object"}) == Grammar.json_object()
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    assert openai.response_grammar(named) == Grammar.json_schema(SCHEMA, lenient=True)
    named["json_schema"]["strict"] = True
    assert openai.response_grammar(named) == Grammar.json_schema(SCHEMA)


@pytest.mark.parametrize(
    "given",
    ["json", {}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "n"}}],
)
def test_other_response_formats_are_refused(given):
    with pytest.raises(ConfigError, match="response_format"):
        openai.response_grammar(given)


def test_the_budget_has_three_names():
    for name in ("max_tokens", "max_completion_tokens", "max_new_tokens"):
        assert openai.generation_options({name: 3, "stop": "x"}) == {"max_new_tokens": 3, "stop": "x"}
    with pytest.raises(ConfigError, match="both max_tokens and max_new_tokens"):
        openai.generation_options({"max_tokens": 1, "max_new_tokens": 1})
