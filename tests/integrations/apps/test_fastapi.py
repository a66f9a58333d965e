"""The FastAPI example on a real server: users, their conversations, and clients that disconnect."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing, asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn

from adafuse_core import Ensemble, ScriptedMember
from adafuse_integrations.langchain import ChatAdaFuse
from tests.integrations.apps.conftest import loaded_example
from tests.integrations.langchain.conftest import held
from tests.integrations.stepped import LONG, Stepped, stopped, until

USERS = ("ana", "ben", "cleo")
QUESTION = "Who wrote The Jungle Book and what is the capital of Sudan?"


@pytest.fixture
def app():
    """The module of the example."""
    return loaded_example("fastapi_sse")


@contextmanager
def running(app):
    """The address of the app on a server of its own."""
    server = uvicorn.Server(uvicorn.Config(app.app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        (port,) = {listening.getsockname()[1] for each in server.servers for listening in each.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(LONG)
        assert not thread.is_alive()


@asynccontextmanager
async def asked(url, user, text):
    """The server-sent events of an answer: kind and data."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=LONG) as client,
        client.stream("POST", f"/chats/{user}", json={"text": text}) as response,
        aclosing(server_sent(response.aiter_lines())) as events,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events


async def server_sent(lines):
    kind = None
    async for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


async def whole(url, user, text=QUESTION):
    """All events of an answer."""
    async with asked(url, user, text) as events:
        return [event async for event in events]


def text_of(events):
    return "".join(data["text"] for kind, data in events if kind == "text")


def of_members(*members, **options):
    """A model of some member objects."""
    return ChatAdaFuse.from_ensemble(Ensemble(members=members), **options)


def messages(*texts):
    return list(zip(("human", "ai") * len(texts), texts, strict=False))


async def test_users_talk_at_the_same_time_each_in_a_conversation_of_their_own(app):
    first = ChatAdaFuse().invoke(messages(QUESTION)).text
    second = ChatAdaFuse().invoke(messages(QUESTION, first, "Hello!")).text
    with running(app) as url:
        answers = await asyncio.gather(*(whole(url, user) for user in USERS))
        assert [text_of(events) for events in answers] == [first] * len(USERS)
        assert text_of(await whole(url, "ana", "Hello!")) == second
        assert app.conversations["ana"].messages == messages(QUESTION, first, "Hello!", second)
        assert app.conversations["ben"].messages == messages(QUESTION, first)


async def test_questions_of_one_user_are_answered_one_after_the_other(app):
    app.llm = of_members(ScriptedMember("echo", lambda prompt: f"after {len(prompt)}"))
    with running(app) as url:
        answers = await asyncio.gather(*(whole(url, "ana") for _ in range(3)))
    assert sorted(map(text_of, answers)) == ["after 1", "after 3", "after 5"]


async def test_a_stream_says_who_proposed_each_word_and_how_the_answer_ended(app):
    with running(app) as url:
        events = await whole(url, "ana")
    words = [word for kind, data in events if kind == "text" for word in data["words"]]
    assert "".join(text for text, _ in words) == text_of(events)
    assert {name for _, names in words for name in names} == {"aspen", "birch"}
    assert events[-1] == ("end", {"reason": "stop"})


async def test_a_failure_is_the_last_event_and_leaves_the_conversation_as_it_was(app):
    with running(app) as url:
        app.llm = of_members(ScriptedMember("broken", "one two three four", margin=0.0, fail_after=2))
        events = await whole(url, "ana")
    assert text_of(events) == "one two"
    assert events[-1][0] == "error"
    assert "broken" in events[-1][1]
    assert app.conversations["ana"].messages == []


async def test_a_client_that_disconnects_ends_its_generation_within_a_step(app):
    member = Stepped("endless", "la le lu ", ends_answer=False, margin=0.0, steps=3)
    with running(app) as url:
        app.llm = of_members(member, max_tokens=None)
        async with asked(url, "ana", QUESTION) as events:
            assert (await anext(events))[0] == "text"
            await until(lambda: member.drafts == 3)
        await stopped(member)  # it waits for its fourth step, so that only the disconnect can end it
        member.let(1000)
        app.llm = of_members(ScriptedMember("next", "welcome back"))
        assert text_of(await whole(url, "ana")) == "welcome back"  # the user's turn is free
        assert app.conversations["ana"].messages == messages(QUESTION, "welcome back")
    assert member.drafts <= 4


async def test_disconnects_free_the_memory_of_models_while_others_go_on(app, tiny_models):
    members = list(tiny_models.values())[:2]
    app.llm = ChatAdaFuse(members=members, branches=1, prefix_cache=False, max_tokens=80)
    with running(app) as url:
        alone = await whole(url, "alone")
        assert held(app.llm) == 0

        async def leave(user):
            async with asked(url, user, QUESTION) as events:
                await anext(events)
                assert held(app.llm) > 0

        *_, stays = await asyncio.gather(*(leave(user) for user in USERS), whole(url, "stays"))
        assert stays == alone
        await until(lambda: held(app.llm) == 0)
        assert not any(app.conversations[user].messages for user in USERS)  # they left before the end


async def test_closing_between_two_events_ends_the_generation(app):
    """As when the server stops while a client does not read."""
    member = Stepped("endless", "la le lu ", ends_answer=False, margin=0.0)
    app.llm = of_members(member, max_tokens=None)
    stream = app.chat("ana", app.Question(text="go"))
    await anext(stream)
    await stream.aclose()
    await stopped(member)
    assert not app.conversations["ana"].turn.locked()
