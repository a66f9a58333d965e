"""The page with the server that it is made for."""

from __future__ import annotations

import threading
import time

import pytest

from adafuse_core import Ensemble
from tests.integrations.page.stub import PATIENCE
from tests.integrations.page.test_page import ANSWER, QUESTION, answer, ask, settle, text_of

app = pytest.importorskip("adafuse_integrations.server.app", reason="adafuse[serve] is not installed")


@pytest.fixture
def real_page(browser):
    """The page of a real server with the small models, without complaints of the browser."""
    import uvicorn

    ensembles = {"adafuse": Ensemble().load()}
    config = uvicorn.Config(app.create_app(ensembles=ensembles), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    (port,) = {listening.getsockname()[1] for each in server.servers for listening in each.sockets}
    context, complaints = browser.new_context(), []
    context.set_default_timeout(PATIENCE * 1000)
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("#model option").first.wait_for(state="attached")
    yield page
    context.close()
    server.should_exit = True
    thread.join()
    assert not [text for text in complaints if "status of 400" not in text]


def test_answers_rounds_and_comparison(real_page):
    page = real_page
    ask(page)
    assert text_of(page) == ANSWER
    page.locator(".w.m1").first.focus()
    assert "birch: the lowest score" in page.locator("#card").inner_text()
    answer(page).get_by_role("button", name="Compare").click()
    answer(page).locator("section").nth(2).wait_for()
    settle(page)
    for name in ("aspen", "birch"):
        alone = Ensemble(strategy="single", member=name).generate([{"role": "user", "content": QUESTION}]).text
        assert alone in page.get_by_label(f"{name} alone", exact=True).inner_text()


def test_a_value_that_the_server_refuses_is_an_error_in_the_conversation(real_page):
    real_page.get_by_label("Longest answer").fill("0.5")
    ask(real_page, "Hello!")
    assert "max_tokens" in answer(real_page).locator(".error").inner_text()
