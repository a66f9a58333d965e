"""Clients that leave, queues, keys, failing members, and the end of the server: what a request costs is counted."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import socket
import subprocess
import sys
import threading

import httpx
import openai
import pytest

from adafuse_core import ScriptedMember
from tests.integrations.server.running import MESSAGES, serving, wait_until
from tests.integrations.stepped import LONG, Stepped

BODY = {"model": "pair", "messages": MESSAGES}


def endless(**options):
    """A member that never ends its answer."""
    return Stepped("endless", "la le lu ", ends_answer=False, **options)


def without_end(server):
    """The body of a request whose answer is very long."""
    return {**BODY, "max_tokens": 10**6}


def in_thread(work):
    """Run work on a thread; returns a function that waits for its result."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result():
        thread.join(LONG)
        assert results, "the thread does not end"
        return results[0]

    return result


def assert_nothing_runs(server, member):
    """No request runs, no prefix is open, and the member drafts no more."""
    server.idle()
    wait_until(lambda: not member.running)
    drafts = member.drafts
    assert server.get("/health").status_code == 200
    assert member.drafts == drafts


def test_a_client_that_leaves_a_stream_ends_the_generation_within_a_step():
    member = endless(steps=3)
    with serving(member) as server:
        with httpx.stream(
            "POST", server.url + "/v1/chat/completions", json={**without_end(server), "stream": True}
        ) as stream:
            lines = stream.iter_lines()  # dropping it would close the connection
            next(lines)
            wait_until(lambda: member.drafts == 3)
        assert_nothing_runs(server, member)
        assert member.drafts <= 4


def test_a_client_that_leaves_before_its_answer_ends_the_generation_within_a_step():
    member = endless(steps=3)
    with serving(member) as server:
        with socket.create_connection(("127.0.0.1", server.port), LONG) as connection:
            body = json.dumps(without_end(server)).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: member.drafts == 3)
        assert_nothing_runs(server, member)
        assert member.drafts <= 4


def test_a_client_that_leaves_the_queue_starts_nothing():
    member = endless(steps=1)
    with serving(member, max_running=1) as server:
        with httpx.stream("POST", server.url + "/v1/chat/completions", json={**without_end(server), "stream": True}):
            with socket.create_connection(("127.0.0.1", server.port), LONG) as connection:
                body = json.dumps(without_end(server)).encode()
                head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                wait_until(lambda: server.answering.admission.waiting == 1)
            wait_until(lambda: server.answering.admission.waiting == 0)
        assert_nothing_runs(server, member)
        assert len(member.prompts) == 1


async def test_the_async_client_can_close_a_stream():
    member = endless(steps=3)
    with serving(member) as server:
        async with server.async_client() as client:
            stream = await client.chat.completions.create(**without_end(server), stream=True)
            await anext(aiter(stream))
            await stream.close()
        await asyncio.to_thread(assert_nothing_runs, server, member)
        assert member.drafts <= 4


def test_many_clients_that_leave_free_everything(count):
    member = endless()
    with serving(member, max_running=4) as server:

        def leave():
            with httpx.stream(
                "POST", server.url + "/v1/chat/completions", json={**without_end(server), "stream": True}, timeout=LONG
            ) as stream:
                lines = stream.iter_lines()  # dropping it would close the connection
                next(lines)

        for result in [in_thread(leave) for _ in range(12)]:
            assert result() is None
        assert_nothing_runs(server, member)
        count("clients that left", 12, at_least=12)


def test_the_queue_is_bounded_and_says_when_to_come_back():
    member = endless(steps=0)
    with serving(member, max_running=1, max_queue=1) as server:
        waiting = [in_thread(lambda: server.post(json={**BODY, "max_tokens": 2}))]
        wait_until(lambda: server.answering.admission.running == 1)
        waiting.append(in_thread(lambda: server.post(json={**BODY, "max_tokens": 2})))
        wait_until(lambda: server.answering.admission.waiting == 1)
        refused = server.post(json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert server.metric("adafuse_requests_waiting") == 1
        with pytest.raises(openai.RateLimitError):
            server.client().chat.completions.create(**BODY)
        member.let(20)
        assert [result().status_code for result in waiting] == [200, 200]
        assert member.most == 1


def test_an_answer_that_takes_too_long_is_ended():
    member = endless(steps=1)
    with serving(member, max_seconds=0.3) as server:
        late = server.post(json=without_end(server))
        assert late.status_code == 504
        assert late.headers["x-should-retry"] == "false"
        assert late.json()["error"]["code"] == "timeout"
        assert_nothing_runs(server, member)


def test_a_request_that_waits_too_long_is_ended():
    member = endless(steps=0)
    with serving(member, max_running=1, max_seconds=0.3) as server:
        results = [in_thread(lambda: server.post(json=BODY)) for _ in range(2)]
        assert {result().status_code for result in results} == {504}
        assert_nothing_runs(server, member)


def test_a_client_that_does_not_read_blocks_nobody():
    member = Stepped("wordy", "x" * 50_000 + " ", ends_answer=False)
    with (
        serving(member, max_running=1, send_seconds=0.5) as server,
        socket.create_connection(("127.0.0.1", server.port), LONG) as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({**BODY, "stream": True, "max_tokens": 400}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: member.drafts >= 1)
        assert server.post(json={**BODY, "max_tokens": 1}).status_code == 200
        wait_until(lambda: not server.answering.is_answering)


def test_keys_are_required_except_for_health():
    with serving(ScriptedMember("one", "a b"), api_keys=["key-1", "key-2"]) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic key-1"}, {"Authorization": ""}):
            refused = server.post(json=BODY, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert server.get("/v1/models", headers=headers).status_code == 401
            assert server.get("/metrics", headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        for key in ("key-1", "key-2"):
            assert server.client(key).chat.completions.create(**BODY).choices[0].message.content == "a b"
        assert (
            server.get("/health").status_code == server.get("/ready").status_code == server.get("/").status_code == 200
        )


def test_a_server_for_this_machine_answers_only_to_names_of_this_machine():
    with serving(ScriptedMember("one", "a")) as server:
        for host in ("localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"):
            assert server.get("/v1/models", headers={"Host": host}).status_code == 200
        for host in ("evil.example.org", "localhost.example.org", "", "127.0.0.1.example.org:80"):
            assert server.get("/v1/models", headers={"Host": host}).status_code == 403
    with serving(ScriptedMember("one", "a"), api_keys=["key"]) as server:
        named = {"Host": "models.example.org", "Authorization": "Bearer key"}
        assert server.get("/v1/models", headers=named).status_code == 200


def test_a_body_is_not_read_without_a_key():
    with (
        serving(ScriptedMember("one", "a b"), api_keys=["key"]) as server,
        socket.create_connection(("127.0.0.1", server.port), LONG) as connection,
    ):
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")


def test_keys_and_users_share_no_cache():
    spaces = []

    class Recording(ScriptedMember):
        def open(self, opening):
            spaces.append(opening.namespace)
            return super().open(opening)

    with serving(Recording("one", "a"), api_keys=["key-1", "key-2"]) as server:
        for key, user in (("key-1", "ann"), ("key-1", "ann"), ("key-1", "bob"), ("key-2", "ann")):
            server.client(key).chat.completions.create(**BODY, user=user)
    assert spaces[0] == spaces[1]
    assert len(set(spaces)) == 3
    assert not any("key-1" in space for space in spaces)


def test_pages_of_other_origins_are_allowed_only_if_set():
    origin = {"Origin": "https://chat.example.org"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with serving(ScriptedMember("one", "a"), api_keys=["key"]) as server:
        assert "access-control-allow-origin" not in server.get("/health", headers=origin).headers
    with serving(ScriptedMember("one", "a"), api_keys=["key"], cors_origins=[origin["Origin"]]) as server:
        allowed = httpx.options(server.url + "/v1/chat/completions", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == origin["Origin"]
        assert server.post(json=BODY, headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
        assert "access-control-allow-origin" not in server.get("/health", headers={"Origin": "https://x.org"}).headers


def test_a_member_that_fails_in_a_stream_ends_it_with_an_error():
    member = ScriptedMember("weak", "a b c d e f g h i j k l", fail_after=2)
    with serving(member) as server:
        seen = []
        stream = server.client().chat.completions.create(**BODY, stream=True)
        with pytest.raises(openai.APIError, match="weak"):
            seen.extend(chunk.choices[0].delta.content for chunk in stream)
        assert "".join(seen)
        assert "a b c d e f g".startswith("".join(seen))
        assert "[DONE]" not in server.post(json={**BODY, "stream": True}).text
        whole = server.post(json=BODY)
        assert whole.status_code == 503
        assert "weak" in whole.json()["error"]["message"]
        server.idle()


def test_an_error_that_is_not_ours_is_not_described():
    def broken(prompt):
        raise RuntimeError("secret detail")

    with serving(ScriptedMember("broken", broken)) as server:
        failed = server.post(json=BODY)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert failed.json()["error"]["type"] == "server_error"
        server.idle()


def test_ready_tells_whether_models_are_loaded():
    with serving(ScriptedMember("one", "a")) as server:
        assert server.get("/ready").json() == {"status": "ready"}


def test_a_stopping_server_finishes_its_streams():
    member = endless(steps=1)
    with serving(member, shutdown_seconds=LONG) as server:
        streamed = in_thread(lambda: list(server.client().chat.completions.create(**BODY, max_tokens=9, stream=True)))
        wait_until(lambda: member.drafts == 1)
        server.stop()
        wait_until(lambda: server.answering.admission.is_closed)
        member.let(20)
        chunks = streamed()
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stopping_server_cancels_its_streams_at_the_deadline():
    member = endless(steps=1)
    with serving(member, shutdown_seconds=0.2) as server:
        streamed = in_thread(lambda: list(server.client().chat.completions.create(**BODY, max_tokens=9, stream=True)))
        wait_until(lambda: member.drafts == 1)
        server.stop()
        assert isinstance(streamed(), openai.APIError)
    assert not member.running


def test_a_stopping_server_refuses_those_that_wait():
    member = endless(steps=0)
    with serving(member, max_running=1, shutdown_seconds=LONG) as server:
        first = in_thread(lambda: server.post(json={**BODY, "max_tokens": 2}))
        wait_until(lambda: server.answering.admission.running == 1)
        second = in_thread(lambda: server.post(json=BODY))
        wait_until(lambda: server.answering.admission.waiting == 1)
        server.stop()
        assert second().status_code == 503
        member.let(10)
        assert first().status_code == 200


PROGRAM = """
import sys, threading
from adafuse_core import Ensemble, ScriptedMember
from adafuse_integrations.server.app import create_app
from adafuse_integrations.server.config import ServerConfig
from adafuse_integrations.server.process import Server

config = ServerConfig(port=0, shutdown_seconds=0.2)
member = ScriptedMember("endless", "la ", ends_answer=False, delay=0.05)
Server(create_app(config, {"pair": Ensemble(members=[member])}), config).run()
"""


def test_a_process_that_is_told_to_end_ends_its_streams():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "running on" in line)
        url = line.partition("running on ")[2].split()[0]
        with httpx.stream(
            "POST", url + "/v1/chat/completions", json={**BODY, "stream": True, "max_tokens": 10**6}, timeout=LONG
        ) as stream:
            lines = stream.iter_lines()
            assert "la" in next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert process.wait(6 * LONG) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_clients_at_the_same_time_get_the_answers_of_single_clients(small, count):
    questions = [
        f"What is the capital of {name}?" for name in ("Peru", "Sudan", "Japan", "Estonia", "Norway", "Poland")
    ]
    bodies = [{"model": "adafuse", "messages": [{"role": "user", "content": text}]} for text in questions]

    def streamed(body):
        chunks = small.client().chat.completions.create(**body, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    alone = [streamed(body) for body in bodies]
    together = [in_thread(functools.partial(streamed, body)) for body in bodies * 2]
    assert [result() for result in together] == alone * 2
    small.idle()
    for member in ("aspen", "birch"):
        assert small.metric("adafuse_kv_tokens", model="adafuse", member=member, of="running") == 0
    count("answers at the same time", len(together), at_least=12)
