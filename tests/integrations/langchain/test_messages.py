"""Conversion of LangChain's messages to core messages, and of the core's events to LangChain's chunks."""

from __future__ import annotations

import datetime
import json
from functools import reduce
from operator import add

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from adafuse_core.calls import InvalidToolCall, ToolCall
from adafuse_core.chat.messages import Message
from adafuse_core.errors import PromptError
from adafuse_core.events import Finished, ReasoningDelta, RoundDone, TextDelta, ToolCallDelta, ToolCallDone
from adafuse_core.rounds import Candidate, Draft, Round, Span, Usage
from adafuse_integrations.langchain.message_chunks import merge_chunks, message_chunks
from adafuse_integrations.langchain.messages import to_messages

WEATHER = {"name": "get_weather", "args": {"city": "Paris"}, "id": "c1"}


def one(message):
    (turn,) = to_messages([message])
    return turn


# --- LangChain's messages to the core ---


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (SystemMessage("hi"), "system"),
        (HumanMessage("hi"), "user"),
        (AIMessage("hi"), "assistant"),
        (AIMessageChunk(content="hi"), "assistant"),
        (ToolMessage("hi", tool_call_id="c1"), "tool"),
        (FunctionMessage(content="hi", name="f"), "tool"),
        (ChatMessage(role="developer", content="hi"), "system"),
        (ChatMessage(role="system", content="hi"), "system"),
        (ChatMessage(role="user", content="hi"), "user"),
        (ChatMessage(role="human", content="hi"), "user"),
        (ChatMessage(role="assistant", content="hi"), "assistant"),
        (ChatMessage(role="ai", content="hi"), "assistant"),
    ],
)
def test_each_kind_of_message_has_its_role(message, role):
    assert (one(message).role, one(message).content) == (role, "hi")


@pytest.mark.parametrize("message", [ChatMessage(role="critic", content="hi"), RemoveMessage(id="1")])
def test_messages_without_a_role_are_refused(message):
    with pytest.raises(PromptError, match=r"critic|remove"):
        to_messages([message])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("two\nlines ", "two\nlines "),
        ([], ""),
        (["one ", "two"], "one two"),
        ([{"type": "text", "text": "one "}, "two"], "one two"),
        ([{"text": "old"}], "old"),
        ([{"type": "text", "text": "advice", "cache_control": {"type": "ephemeral"}}], "advice"),
        ([{"type": "text", "text": "cited", "annotations": [], "id": "lc_1", "index": 0}], "cited"),
        ([{"type": "text-plain", "text": "body", "title": "Title", "mime_type": "text/plain"}], "Title\nbody"),
    ],
)
def test_texts_of_a_message_are_joined(content, text):
    assert one(HumanMessage(content)).content == text


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
        {"type": "image", "url": "https://example.com/cat.png"},
        {"type": "image", "source_type": "base64", "data": "AAAA", "mime_type": "image/png"},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "video", "url": "https://example.com/cat.mp4"},
        {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"},
        {"type": "text-plain", "url": "https://example.com/cat.txt"},
        {"type": "server_tool_result", "tool_call_id": "c1", "status": "success"},
        {"type": "non_standard", "value": {}},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        {"no": "type"},
    ],
)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage])
def test_content_other_than_text_raises_a_value_error(block, kind):
    with pytest.raises(PromptError, match="expected text") as caught:
        to_messages([kind([{"type": "text", "text": "look"}, block])])
    assert isinstance(caught.value, ValueError)
    assert repr(block.get("type")) in str(caught.value)


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "thinking", "thinking": "hm", "signature": "AAAA"},
        {"type": "redacted_thinking", "data": "AAAA"},
    ],
)
def test_reasoning_of_earlier_turns_is_dropped(thought):
    assert one(AIMessage([thought, {"type": "text", "text": "yes"}])) == Message(role="assistant", content="yes")
    assert one(AIMessage("yes", additional_kwargs={"reasoning_content": "hm"})).content == "yes"


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", tool_calls=[WEATHER]),
        AIMessage([{"type": "tool_call", **WEATHER}], tool_calls=[WEATHER]),
        AIMessage(content_blocks=[{"type": "tool_call", **WEATHER}]),
        AIMessage([{"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Paris"}}]),
        AIMessage(
            [
                {
                    "type": "function_call",
                    "id": "fc_1",
                    "call_id": "c1",
                    "name": "get_weather",
                    "arguments": '{"city": "Paris"}',
                }
            ]
        ),
        AIMessage([{"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "x"}], tool_calls=[WEATHER]),
        AIMessage([{"type": "tool_call_chunk", "id": "c1", "name": "x", "args": "{"}], tool_calls=[WEATHER]),
        AIMessage([{"type": "input_json_delta", "partial_json": "{"}], tool_calls=[WEATHER]),
        AIMessage(
            "",
            additional_kwargs={
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                    }
                ]
            },
        ),
        AIMessageChunk(
            content="",
            tool_call_chunks=[{"name": "get_weather", "args": '{"city": "Paris"}', "id": "c1", "index": 0}],
        ),
    ],
)
def test_tool_calls_are_carried_once_in_whatever_form(message):
    (call,) = one(message).tool_calls
    assert call == ToolCall(name="get_weather", arguments={"city": "Paris"}, id="c1")
    assert one(message).content == ""


def test_legacy_function_calls_are_converted():
    old = {"function_call": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    assert one(AIMessage("", additional_kwargs=old)).tool_calls == (
        ToolCall(name="get_weather", arguments={"city": "Paris"}),
    )


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("so:", invalid_tool_calls=[{"name": "f", "args": '{"a', "id": "c1", "error": "cut"}]),
        AIMessage(
            [
                {"type": "text", "text": "so:"},
                {"type": "invalid_tool_call", "name": "f", "args": '{"a', "id": "c1", "error": "cut"},
            ]
        ),
        AIMessage("so:", additional_kwargs={"function_call": {"name": "f", "arguments": '{"a'}}),
    ],
)
def test_invalid_calls_become_text(message):
    assert one(message) == Message(role="assistant", content='so:\nInvalid call of f: {"a')


def test_a_tool_result_knows_its_call_and_its_tool():
    turns = to_messages(
        [HumanMessage("?"), AIMessage("", tool_calls=[WEATHER]), ToolMessage("rain", tool_call_id="c1")]
    )
    assert turns[-1] == Message(role="tool", content="rain", tool_call_id="c1", name="get_weather")
    assert one(ToolMessage("rain", tool_call_id="c2", name="mine")).name == "mine"
    assert one(ToolMessage("rain", tool_call_id="c2")).name is None


def test_a_tool_result_may_be_a_list():
    message = ToolMessage(["12 degrees ", {"type": "text", "text": "and rain"}], tool_call_id="c1")
    assert one(message).content == "12 degrees and rain"
    with pytest.raises(PromptError, match="'image'"):
        one(ToolMessage([{"type": "image", "url": "https://example.com/cat.png"}], tool_call_id="c1"))


@pytest.mark.parametrize(("text", "told"), [("no such city", "Error: no such city"), ("error: no", "error: no")])
def test_the_result_of_a_failed_tool_starts_with_error(text, told):
    assert one(ToolMessage(text, tool_call_id="c1", status="error")).content == told
    assert one(ToolMessage(text, tool_call_id="c1")).content == text


def test_tool_results_in_a_user_message_become_separate_messages():
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
    failed = {"type": "tool_result", "tool_use_id": "c2", "content": "none", "is_error": True}
    call = {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {}}
    turns = to_messages([AIMessage([call]), HumanMessage([result, failed, {"type": "text", "text": "and now?"}])])
    assert turns[1:] == [
        Message(role="tool", content="rain", tool_call_id="c1", name="get_weather"),
        Message(role="tool", content="Error: none", tool_call_id="c2"),
        Message(role="user", content="and now?"),
    ]
    assert len(to_messages([HumanMessage([result])])) == 1
    with pytest.raises(PromptError, match="tool_result"):
        to_messages([SystemMessage([result])])


def test_names_are_handed_to_the_templates():
    assert one(HumanMessage("hi", name="ann")).name == "ann"
    assert one(AIMessage("hi", name="helper")).name == "helper"


# --- the core's events to LangChain ---


def played(text="x"):
    span = Span(text=text)
    draft = Draft(member="a", spans=(span,), margins=(1.0,))
    candidate = Candidate(span=span, proposers=("a",))
    return RoundDone(round=Round(drafts=(draft,), candidates=(candidate,), scores=(), fused=(), chosen=0))


def call_delta(index, arguments, name=None):
    return ToolCallDelta(index=index, id=name and f"id{index}", name=name, arguments=arguments)


def done(index, name, arguments):
    return ToolCallDone(index=index, call=ToolCall(name=name, arguments=arguments, id=f"id{index}"))


END = Finished(
    reason="stop",
    stop=None,
    usage=Usage(prompt_tokens={"a": 3, "b": 4}, completion_tokens={"a": 1, "b": 2}, rounds=1),
)
TWO_CALLS = [
    ReasoningDelta(text="They want "),
    played(),
    ReasoningDelta(text="two things."),
    TextDelta(text="Let me "),
    played(),
    TextDelta(text="see."),
    call_delta(0, "", "get_weather"),
    call_delta(0, '{"city": '),
    played(),
    call_delta(0, '"Paris"}'),
    done(0, "get_weather", {"city": "Paris"}),
    call_delta(1, "", "add"),
    played(),
    call_delta(1, '{"a": 1}'),
    done(1, "add", {"a": 1}),
    played(),
    END,
]


def summed(events):
    chunks = list(message_chunks(events, "a+b", trace=True))
    return chunks, reduce(add, [chunk.message for chunk in chunks])


def test_a_chunk_holds_one_kind_of_block():
    chunks, _ = summed(TWO_CALLS)
    for chunk in chunks[:-1]:
        message = chunk.message
        kinds = [message.content, message.additional_kwargs, message.tool_call_chunks]
        assert sum(map(bool, kinds)) == 1
    assert not any([chunks[-1].message.content, chunks[-1].message.tool_call_chunks])


def test_chunks_add_up_to_text_thoughts_and_calls():
    _, message = summed(TWO_CALLS)
    assert message.content == "Let me see."
    assert message.tool_calls == [
        {"type": "tool_call", "name": "get_weather", "args": {"city": "Paris"}, "id": "id0"},
        {"type": "tool_call", "name": "add", "args": {"a": 1}, "id": "id1"},
    ]
    assert message.invalid_tool_calls == []
    assert [block["type"] for block in message.content_blocks] == ["reasoning", "text", "tool_call", "tool_call"]
    assert message.content_blocks[0]["reasoning"] == "They want two things."
    assert message.chunk_position == "last"


def test_name_and_id_of_a_call_come_first_and_once():
    chunks, _ = summed(TWO_CALLS)
    pieces = [piece for chunk in chunks for piece in chunk.message.tool_call_chunks]
    for index in {piece["index"] for piece in pieces}:
        first, *rest = [piece for piece in pieces if piece["index"] == index]
        assert first["name"]
        assert first["id"]
        assert first["args"] == ""
        assert all(piece["name"] is None and piece["id"] is None for piece in rest)


def test_usage_and_finish_reason_occur_once():
    chunks, message = summed(TWO_CALLS)
    counts = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
    assert message.usage_metadata == counts | {"input_token_details": {"cache_read": 0}}
    assert sum(chunk.message.usage_metadata is not None for chunk in chunks) == 1
    info = reduce(add, chunks).generation_info
    assert (info["finish_reason"], info["stop"], info["model_name"]) == ("stop", None, "a+b")
    assert info["adafuse"]["usage"]["completion_tokens"] == {"a": 1, "b": 2}
    assert info["adafuse"]["counted_by"] == "a"
    assert len(info["adafuse"]["rounds"]) == sum(isinstance(event, RoundDone) for event in TWO_CALLS)
    assert message.response_metadata["model_provider"] == "adafuse"
    assert json.loads(json.dumps(info)) == info


def test_the_merged_answer_is_the_sum_of_the_chunks():
    chunks, message = summed(TWO_CALLS)
    generation = merge_chunks(chunks)
    assert type(generation.message) is AIMessage
    assert generation.message.content_blocks == message.content_blocks
    assert generation.message.usage_metadata == message.usage_metadata
    assert generation.generation_info == reduce(add, chunks).generation_info


def test_an_empty_answer_is_an_answer():
    chunks, message = summed([END])
    assert len(chunks) == 1
    assert (message.content, message.chunk_position) == ("", "last")
    assert merge_chunks(chunks).message.content == ""


BROKEN = [
    "",
    "{",
    '{"city',
    '{"city": "Par',
    '{"city": "a\\',
    '{"city": ["x',
    '{"city": ["x"',
    '{"city": {"a": 1',
    "{}",
]


@pytest.mark.parametrize("written", BROKEN)
def test_an_incomplete_call_is_invalid_however_it_is_read(written):
    call = InvalidToolCall(name="f", arguments=written, id="id0", error="cut")
    events = [
        TextDelta(text="so"),
        call_delta(0, "", "f"),
        call_delta(0, written),
        ToolCallDone(index=0, call=call),
        END,
    ]
    chunks, message = summed(events)
    assert message.tool_calls == []
    assert [invalid["name"] for invalid in message.invalid_tool_calls] == ["f"]
    generation = merge_chunks(chunks)
    assert generation.message.tool_calls == []
    assert generation.message.invalid_tool_calls == [
        {"type": "invalid_tool_call", "name": "f", "args": written, "id": "id0", "error": "cut"}
    ]


@pytest.mark.parametrize("written", ["", "junk", "{}"])
def test_a_call_that_never_had_a_name_is_invalid_too(written):
    call = InvalidToolCall(name=None, arguments=written, id="id0", error="cut")
    chunks, message = summed([ToolCallDone(index=0, call=call), END])
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["id"] == "id0"
    assert merge_chunks(chunks).message.invalid_tool_calls[0]["args"] == written


def test_a_good_call_before_a_broken_one_stays():
    call = InvalidToolCall(name="g", arguments='{"a": 1', id="id1", error="cut")
    good = [call_delta(0, '{"a": 1}', "f"), done(0, "f", {"a": 1})]
    broken = [call_delta(1, '{"a": 1', "g"), ToolCallDone(index=1, call=call)]
    chunks, message = summed([*good, *broken, END])
    for calls in (message.tool_calls, merge_chunks(chunks).message.tool_calls):
        assert [called["name"] for called in calls] == ["f"]
    assert [called["name"] for called in message.invalid_tool_calls] == ["g"]


def test_a_refusal_is_the_text_of_its_turn():
    assert one(AIMessage([{"type": "refusal", "refusal": "No."}])) == Message(role="assistant", content="No.")


@pytest.mark.parametrize(
    "arguments", [{"city": "\ud83d"}, {"\ud83d": 1}, {"day": datetime.date(2026, 1, 1)}, {"list": [{"x": "\ud800"}]}]
)
def test_arguments_that_no_member_can_read_are_refused(arguments):
    with pytest.raises(PromptError, match=r"surrogate|no JSON values"):
        one(AIMessage("", tool_calls=[{"name": "f", "args": arguments, "id": "c1"}]))
