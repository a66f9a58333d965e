"""Links of the documentation have targets, and its module map lists all modules of the core."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
HOUSE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("```\n")[2].partition("```")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_targets(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_module_map_lists_exactly_the_modules_of_the_core():
    named = set(re.findall(r"\w+\.py", HOUSE))
    core = [*ROOT.glob("adafuse_core/*.py"), *ROOT.glob("adafuse_core/*/*.py")]
    tables = {"strategies", "backends"}  # new files in these packages need no change of the map
    assert {path.name for path in core if path.parent.name not in tables} - {"__init__.py"} <= named
    assert named <= {
        path.name for path in [*ROOT.glob("adafuse_core/**/*.py"), *ROOT.glob("adafuse_integrations/*/*.py")]
    }
