"""A browser without a window, and a server for the page. Without a browser, these tests are skipped."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from adafuse_core import Ensemble
from tests.integrations.page.stub import PATIENCE, Stub

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")
def browser():
    """Headless Chromium: the one that Playwright has installed, or the system's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        found = [started.chromium.executable_path, *filter(None, map(shutil.which, _NAMES))]
        found = [path for path in found if Path(path).exists()]
        if not found:
            pytest.skip("no browser: run `playwright install chromium`, or install the system's chromium")
        launched = started.chromium.launch(executable_path=found[0])
        yield launched
        launched.close()


@pytest.fixture
def server():
    """The stub server, with the small models as `adafuse`."""
    made = Stub()
    made.ensembles["adafuse"] = Ensemble()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.go.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def open_page(browser, server):
    """Opens the page; errors of its script, and texts in its console, fail the test."""
    contexts, complaints = [], []

    def opened(**options):
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(server.url)
        page.locator("#model option").first.wait_for(state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    expected = ("400", "401", "429")  # the browser logs these answers of the server
    assert not [text for text in complaints if not any(f"status of {status}" in text for status in expected)]


@pytest.fixture
def page(open_page):
    """The page in a wide window."""
    return open_page()
