"""Requests that are refused: the status, and the error in OpenAI's format."""

from __future__ import annotations

import json
import socket

import pytest

from adafuse_core import Ensemble, ScriptedMember
from tests.integrations.server.running import MESSAGES, serving
from tests.integrations.stepped import LONG

BODY = {"model": "pair", "messages": MESSAGES}
TOOL = {"type": "function", "function": {"name": "look"}}


@pytest.fixture(scope="module")
def server():
    members = [ScriptedMember("one", "a b c"), ScriptedMember("two", "a b c")]
    limits = {"max_body_bytes": 5000, "max_output_tokens": 50, "max_prompt_tokens": 100, "max_choices": 3}
    with serving(*members, **limits) as running:
        yield running


REFUSED = {
    "an unknown field": ({"foo": 1}, 400, "foo"),
    "an unknown model": ({"model": "other"}, 404, "model"),
    "an unknown member": ({"model": "pair:three"}, 404, "model"),
    "no model": ({"model": None}, 400, "model"),
    "no messages": ({"messages": []}, 400, "messages"),
    "messages that are no list": ({"messages": "hi"}, 400, "messages"),
    "an empty conversation": ({"messages": [{"role": "user", "content": " "}]}, 400, None),
    "an unknown role": ({"messages": [{"role": "king", "content": "hi"}]}, 400, None),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, None),
    "a lone surrogate": ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, None),
    "a lone surrogate in a field's name": ({"\ud800": 1}, 400, None),
    "a lone surrogate in a tool": (
        {"tools": [{"type": "function", "function": {"name": "\ud800"}}], "tool_choice": "required"},
        400,
        None,
    ),
    "a lone surrogate in a tool's schema": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a\ud800": {}}}}}]},
        400,
        None,
    ),
    "a lone surrogate in a call": (
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}]},
            ]
        },
        400,
        None,
    ),
    "a tool that is strict as text": ({"tools": [{**TOOL, "function": {"name": "f", "strict": "yes"}}]}, 400, None),
    "a tool whose description is a number": (
        {"tools": [{**TOOL, "function": {"name": "f", "description": 5}}]},
        400,
        None,
    ),
    "a tool with an unknown part": ({"tools": [{**TOOL, "function": {"name": "f", "returns": {}}}]}, 400, None),
    "top_p": ({"top_p": 0.5}, 400, "top_p"),
    "a true penalty": ({"presence_penalty": False}, 400, "presence_penalty"),
    "logit_bias": ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
    "audio": ({"modalities": ["text", "audio"]}, 400, "modalities"),
    "storing": ({"store": True}, 400, "store"),
    "functions": ({"functions": []}, 400, "functions"),
    "a hot member alone": ({"model": "pair:one", "temperature": 1}, 400, None),
    "a cold temperature": ({"temperature": -1}, 400, "temperature"),
    "an endless temperature": ({"temperature": 1e400}, 400, None),
    "a temperature as text": ({"temperature": "1"}, 400, "temperature"),
    "a huge seed": ({"seed": 1.5}, 400, "seed"),
    "no tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "too many tokens": ({"max_tokens": 51}, 400, "max_tokens"),
    "two lengths": ({"max_tokens": 5, "max_completion_tokens": 5}, 400, None),
    "too many answers": ({"n": 4}, 400, "n"),
    "a stop string that is empty": ({"stop": ""}, 400, None),
    "stop strings that are numbers": ({"stop": [1]}, 400, "stop"),
    "stream as text": ({"stream": "yes"}, 400, "stream"),
    "stream_options alone": ({"stream": False, "stream_options": {"include_usage": True}}, 400, None),
    "an unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x"),
    "a tool of a provider": ({"tools": [{"type": "web_search"}]}, 400, None),
    "a call of an unknown tool": ({"tools": [TOOL], "tool_choice": "other"}, 400, None),
    "a forced call without tools": ({"tool_choice": "required"}, 400, None),
    "an unknown response format": ({"response_format": {"type": "xml"}}, 400, None),
    "an impossible schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}, "strict": True}}},
        400,
        None,
    ),
    "top_logprobs alone": ({"top_logprobs": 2}, 400, None),
    "an unknown key of the extension": ({"adafuse": {"steps": True}}, 400, "adafuse.steps"),
    "an extension that is no object": ({"adafuse": True}, 400, "adafuse"),
    "a long prompt": ({"messages": [{"role": "user", "content": "word " * 200}]}, 400, "messages"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_can_not_be_honoured_is_refused(server, what, stream):
    changes, status, param = REFUSED[what]
    body = {**BODY, **({"stream": True} if stream else {}), **changes}
    # As ASCII, since some of the bodies have no other form.
    response = server.post(content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["param"] == param
    assert error["message"]


def test_members_answer_alone_whatever_happens_if_one_fails():
    dropping = Ensemble(members=[ScriptedMember("one", "a"), ScriptedMember("two", "b")], on_member_failure="drop")
    with serving(ensembles={"pair": dropping}) as running:
        answer = running.post(json={**BODY, "model": "pair:two"}).json()
    assert answer["choices"][0]["message"]["content"] == "b"


def test_a_body_without_its_type_is_refused_with_the_header_that_it_needs(server):
    response = server.post(content=json.dumps(BODY))
    assert response.status_code == 400
    assert "Content-Type: application/json" in response.json()["error"]["message"]


NEUTRAL = {
    "top_p": [1, 1.0, None],
    "frequency_penalty": [0, 0.0],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "modalities": [["text"]],
    "service_tier": ["auto", "default"],
    "store": [False],
    "n": [1],
    "temperature": [0, 0.0],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "response_format": [{"type": "text"}],
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_values_that_change_nothing_are_accepted(server, name):
    for value in NEUTRAL[name]:
        response = server.post(json={**BODY, name: value})
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "a b c"


def test_completions_refuse_what_they_can_not_honour(server):
    for changes in ({"prompt": [1, 2]}, {"prompt": ""}, {"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"n": 4}):
        body = {"model": "pair", "prompt": "hi", **changes}
        assert server.post("/v1/completions", json=body).status_code == 400, changes


BROKEN = {
    "no JSON": b"hello",
    "half of an object": b'{"model": "pair", "messages": [',
    "bad UTF-8": b'{"model": "pair\xff\xfe", "messages": []}',
    "a UTF-8 mark": b"\xef\xbb\xbf{}",
    "deep nesting": b'{"messages":' + b"[" * 4000,
    "nothing": b"",
    "a list": b"[]",
    "a null": b"null",
    "a number that is none": b'{"model": "pair", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_body_that_can_not_be_read_is_refused(server, what):
    response = server.post(content=BROKEN[what], headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_body_of_another_type_is_refused(server):
    # Else any web page could send requests to a server on the same machine, without asking the browser.
    response = server.post(content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert response.status_code == 400


def test_an_error_does_not_repeat_a_long_request(server):
    refused = server.post(json={**BODY, "messages": [{"role": "user", "content": {"x": "y" * 4500}}]})
    assert refused.status_code == 400
    assert len(refused.text) < 3000


def test_the_root_has_the_page_or_says_where_the_interface_is(server):
    page = server.get("/")
    assert page.status_code == 200
    assert "/v1" in page.text or page.headers["content-type"].startswith("text/html")


def test_unknown_paths_and_methods_have_errors_of_the_same_form(server):
    assert server.get("/v2/models").json()["error"]["code"] == "not_found"
    assert server.get("/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"


def test_a_large_body_is_refused_before_it_is_read(server):
    response = server.post(json={**BODY, "messages": [{"role": "user", "content": "x" * 6000}]})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_large_body_of_unknown_length_is_refused(server):
    pieces = (b"x" * 1000 for _ in range(10))
    assert server.post(content=pieces, headers={"content-type": "application/json"}).status_code == 413


def test_a_body_that_does_not_come_is_not_awaited_for_ever():
    with (
        serving(ScriptedMember("one", "a"), body_seconds=0.2) as server,
        socket.create_connection(("127.0.0.1", server.port), LONG) as connection,
    ):
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall((head + "Content-Length: 100\r\n\r\n{").encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("sent", [b"POST /v1/chat", b"\x00\xff\x00\n\n", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_connections_that_break_leave_the_server_serving(server, sent):
    for _ in range(5):
        connection = socket.create_connection(("127.0.0.1", server.port), LONG)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(sent)
        connection.close()  # with a reset
    assert server.post(json=BODY).status_code == 200


def test_a_schema_that_is_nested_too_deeply_is_refused():
    deep = {"type": "object"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    named = {"type": "json_schema", "json_schema": {"name": "deep", "schema": deep}}
    with serving(ScriptedMember("one", "{}")) as server:
        refused = server.post(json={**BODY, "response_format": named})
    assert refused.status_code == 400
    assert "nested" in refused.json()["error"]["message"]


def test_a_default_length_beyond_the_limit_is_cut_to_it():
    endless = ScriptedMember("endless", "la ", ends_answer=False)
    ensemble = Ensemble(members=[endless], generation={"max_new_tokens": 5})
    with serving(ensembles={"pair": ensemble}, max_output_tokens=7) as server:
        assert server.post(json=BODY).json()["usage"]["completion_tokens"] == 5
    with serving(endless, max_output_tokens=7) as server:
        answer = server.post(json=BODY).json()
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"


def test_thoughts_are_apart_from_the_answer():
    with serving(ScriptedMember("thinker", "<think>Hm, cities.</think>Paris it is.")) as server:
        message = server.post(json=BODY).json()["choices"][0]["message"]
        with server.client() as client:
            chunks = list(client.chat.completions.create(**BODY, stream=True))
    assert message["content"] == "Paris it is."
    assert message["reasoning_content"] == "Hm, cities."
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm, cities."
    assert "".join(delta.content or "" for delta in deltas) == "Paris it is."


def test_a_call_that_the_budget_cuts_has_unfinished_arguments():
    reply = '<tool_call>\n{"name": "look", "arguments": {"at": "the old town of the city by the sea"}}\n</tool_call>'
    schema = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    with serving(ScriptedMember("caller", reply)) as server:
        whole = server.post(json={**BODY, "tools": tools}).json()["choices"][0]
        cut = server.post(json={**BODY, "tools": tools, "max_tokens": 8}).json()["choices"][0]
    assert json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"])["at"].endswith("by the sea")
    assert whole["finish_reason"] == "tool_calls"
    assert cut["finish_reason"] == "length"
    for call in cut["message"].get("tool_calls", ()):
        with pytest.raises(ValueError):
            json.loads(call["function"]["arguments"])
