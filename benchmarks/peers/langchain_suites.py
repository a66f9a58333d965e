"""LangChain's standard test suites, run on each side without expected failures."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
from peers.comparison import portable
from peers.langchain_sides import MODEL, Side

PACKAGE = "langchain-tests"
ROOT = Path(__file__).parents[2]

SUITE = """
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

class TestUnit(ChatModelUnitTests):
    chat_model_class = Model
    chat_model_params = {name: value for name, value in PARAMS.items() if name != "max_tokens"}  # set by the suite

class TestIntegration(ChatModelIntegrationTests):
    chat_model_class = Model
    chat_model_params = PARAMS
    supports_json_mode = True
"""


def run(side: Side) -> dict[str, dict[str, str]]:
    """The outcome of each test of `langchain-tests`, without expected failures."""
    with TemporaryDirectory() as folder:
        path, report = Path(folder) / "test_suites.py", Path(folder) / "report.xml"
        path.write_text(f"MODEL = {MODEL!r}\n{side.suite}{SUITE}", encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
        }
        options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", f"--junitxml={report}", str(path)]
        subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, env=environment, capture_output=True)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        return {f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}": outcome(case) for case in cases}


def outcome(case: Any) -> dict[str, str]:
    """The outcome of a test, with the message of a failure."""
    for child in case:
        if child.tag in ("failure", "error", "skipped"):
            how = "skipped" if child.tag == "skipped" else "failed"
            return {"how": how, "why": portable((child.get("message", "").splitlines() or [""])[0])[:160]}
    return {"how": "passed", "why": ""}


def show(suites: dict[str, dict[str, dict[str, str]]]) -> None:
    """Print one row per test, parametrized tests together, and the totals."""
    tests = dict.fromkeys(name.partition("[")[0] for suite in suites.values() for name in suite)
    rows: list[list[object]] = []
    for test in tests:
        cells = []
        for suite in suites.values():
            counts = Counter(end["how"] for name, end in suite.items() if name.partition("[")[0] == test)
            cells.append(", ".join(f"{count} {how}" if count > 1 else how for how, count in counts.items()))
        rows.append([test, *cells])
    sums = [Counter(end["how"] for end in suite.values()) for suite in suites.values()]
    for how in ("passed", "skipped", "failed"):
        rows.append([f"all {how}", *(count[how] for count in sums)])
    common.show("langchain-tests, nothing expected to fail", ["test", *suites], rows)
