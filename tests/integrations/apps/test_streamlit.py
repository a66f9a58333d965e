"""The Streamlit example, run by Streamlit's own test runner."""

from __future__ import annotations

import pytest

import adafuse_core
from adafuse_core import Ensemble, ScriptedMember
from tests.integrations.apps.conftest import EXAMPLES
from tests.integrations.stepped import LONG, Stepped, stopped

streamlit = pytest.importorskip("streamlit", reason="streamlit is not installed")
from streamlit.testing.v1 import AppTest  # noqa: E402

QUESTION = "Who wrote The Jungle Book and what is the capital of Sudan?"


@pytest.fixture
def page():
    """A user's page."""
    streamlit.cache_resource.clear()
    return AppTest.from_file(str(EXAMPLES / "streamlit_chat.py"), default_timeout=10 * LONG).run()


@pytest.fixture
def served(monkeypatch):
    """Lets the page answer with other members."""

    def serve(*members, **options):
        streamlit.cache_resource.clear()
        monkeypatch.setattr(adafuse_core, "Ensemble", lambda: Ensemble(members=members, **options))

    return serve


def ask(page, text):
    page.chat_input[0].set_value(text).run()
    assert not page.exception
    return page


def spoken(page):
    """Who says what."""
    return [(message.name, message.markdown[0].value) for message in page.chat_message]


def test_a_conversation(page):
    assert page.title[0].value == "AdaFuse chat"
    first = Ensemble().generate(talk := [{"role": "user", "content": QUESTION}]).text
    talk += [{"role": "assistant", "content": first}, {"role": "user", "content": "Hello!"}]
    second = Ensemble().generate(talk).text
    assert spoken(ask(page, QUESTION)) == [("user", QUESTION), ("assistant", first)]
    expected = [*((message["role"], message["content"]) for message in talk), ("assistant", second)]
    assert spoken(ask(page, "Hello!")) == expected
    assert spoken(page.run()) == expected


def test_a_panel_shows_who_proposed_each_word(page):
    answer = Ensemble().generate([{"role": "user", "content": QUESTION}])
    (panel,) = ask(page, QUESTION).expander
    assert panel.label == "Where each word comes from"
    assert panel.children[0].proto.body == answer.trace._repr_html_()


def test_users_have_conversations_of_their_own(page):
    ask(page, "Hello!")
    other = AppTest.from_file(str(EXAMPLES / "streamlit_chat.py"), default_timeout=10 * LONG).run()
    assert spoken(other) == []
    assert other.session_state["conversation"] is not page.session_state["conversation"]
    assert spoken(ask(other, QUESTION))[0] == ("user", QUESTION)
    assert spoken(page)[0] == ("user", "Hello!")
    assert other.session_state["user"] != page.session_state["user"]


def test_a_failure_is_shown_and_leaves_the_conversation_as_it_was(page, served):
    served(ScriptedMember("broken", "one two three four", margin=0.0, fail_after=2))
    ask(page, "go")
    assert "broken" in page.error[0].value
    assert page.session_state["conversation"] == []
    served(ScriptedMember("next", "welcome back"))
    assert spoken(ask(page, "again")) == [("user", "again"), ("assistant", "welcome back")]


async def test_stopping_the_page_ends_the_generation(page, served):
    member = Stepped("endless", "la le lu ", ends_answer=False, margin=0.0, delay=0.01)
    served(member, generation={"max_new_tokens": None})
    with pytest.raises(RuntimeError, match="timed out"):  # then the runner stops the script, as the stop button does
        page.chat_input[0].set_value("go").run(timeout=5)
    await stopped(member)
    drafts = member.drafts
    assert drafts > 0
    served(ScriptedMember("next", "welcome back"))
    assert spoken(ask(page, "again")) == [("user", "again"), ("assistant", "welcome back")]
    assert member.drafts == drafts
