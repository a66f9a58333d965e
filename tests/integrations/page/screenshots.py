"""Screenshots of the page, to look at: `python -m tests.integrations.page.screenshots FOLDER [BROWSER]`."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from adafuse_core import Ensemble
from tests.integrations.page.stub import Stub
from tests.integrations.page.test_page import QUESTION, answer, ask, settle


def main(folder, browser=None):
    """The page with an answer, a round and the comparison: wide and narrow, light and dark."""
    server = Stub()
    server.ensembles["adafuse"] = Ensemble()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Path(folder).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser)
        for scheme in ("light", "dark"):
            for name, width, height in (("wide", 1180, 620), ("narrow", 390, 760)):
                page = started.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
                page.goto(server.url)
                page.locator("#model option").first.wait_for(state="attached")
                ask(page, QUESTION)
                answer(page).get_by_role("button", name="Compare").click()
                answer(page).locator("section").nth(2).wait_for()
                settle(page)
                page.locator(".w.m1").first.focus()
                page.screenshot(path=str(Path(folder) / f"{name}-{scheme}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
