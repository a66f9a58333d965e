"""The Gradio example on a real server, with Gradio's own client."""

from __future__ import annotations

import os

import pytest

from adafuse_core import Ensemble, ScriptedMember
from tests.integrations.apps.conftest import loaded_example
from tests.integrations.stepped import LONG, Stepped, stopped, until

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no network
pytest.importorskip("gradio", reason="gradio is not installed: make test-apps")
gradio_client = pytest.importorskip("gradio_client")

pytestmark = pytest.mark.filterwarnings("default")  # of packages that are not ours

QUESTION = "Who wrote The Jungle Book and what is the capital of Sudan?"


@pytest.fixture
def app():
    """The module of the example, whose page runs."""
    app = loaded_example("gradio_chat")
    app.page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield app
    app.page.close()


@pytest.fixture
def connected(app):
    """Makes clients, each of which is a user."""
    clients = []

    def connect():
        clients.append(gradio_client.Client(app.page.local_url, verbose=False))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def ask(client, text):
    """All states of the answer and of its words."""
    job = client.submit(text, api_name="/respond")
    job.result(timeout=10 * LONG)
    return job.outputs()


def test_a_conversation_streams_and_says_who_proposed_each_word(connected):
    talk = [{"role": "user", "content": QUESTION}]
    first = Ensemble().generate(talk).text
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "Hello!"}]
    client = connected()
    states = ask(client, QUESTION)
    assert len(states) > 5
    answer, words = states[-1]
    assert answer == first
    assert all(first.startswith(text) for text, _ in states)
    assert "".join(text for text, _ in words) == first
    assert {names for _, names in words} >= {"aspen and birch", "birch"}
    assert ask(client, "Hello!")[-1][0] == Ensemble().generate(talk).text


def test_users_have_conversations_of_their_own(app, connected):
    app.ensemble = Ensemble(members=[ScriptedMember("echo", lambda prompt: f"after {len(prompt)}")])
    one, other = connected(), connected()
    assert [ask(client, "go")[-1][0] for client in (one, one, other, one)] == [
        "after 1",
        "after 3",
        "after 1",
        "after 5",
    ]


def test_a_failure_is_shown(app, connected):
    app.ensemble = Ensemble(members=[ScriptedMember("broken", "one two three four", margin=0.0, fail_after=2)])
    with pytest.raises(Exception, match="broken"):
        ask(connected(), "go")


async def test_a_user_who_stops_the_answer_ends_the_generation(app, connected):
    member = Stepped("endless", "la le lu ", ends_answer=False, margin=0.0, delay=0.01)
    app.ensemble = Ensemble(members=[member], generation={"max_new_tokens": None})
    job = connected().submit("go", api_name="/respond")
    await until(lambda: len(job.outputs()) > 2)
    job.cancel()
    await stopped(member)
