"""The docs site: built strictly, with every page, every public name, and nothing from other sites."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = ("adafuse_core", "adafuse_integrations.langchain", "adafuse_integrations.llama_index")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. A broken link or a page outside of the navigation ends the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / ".site/mkdocs.yml"), "--site-dir", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(site, page):
    return (site / page / "index.html").read_text(encoding="utf-8")


def test_every_page_and_notebook_is_part_of_the_site(site):
    names = [path.stem for path in ROOT.glob("docs/*.md")]
    notebooks = [f"tutorials/{path.stem}" for path in ROOT.glob("examples/notebooks/*")]
    assert len(names) > 10
    assert len(notebooks) == 3
    for page in (*names, *notebooks, "contributing", "changelog", "security", "."):
        assert read(site, page)


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_has_its_docstring(site, package):
    page = read(site, f"api/{package}")
    for name in importlib.import_module(package).__all__:
        _, heading, after = page.partition(f'id="{package}.{name}"')
        assert heading, name
        assert 'class="doc doc-contents' in after.partition("<h3")[0], name


METHODS = {
    "adafuse_core": {"Ensemble": ("generate", "stream", "batch", "score", "close")},
    "adafuse_integrations.langchain": {"ChatAdaFuse": ("stream", "with_structured_output", "from_ensemble", "cancel")},
    "adafuse_integrations.llama_index": {"AdaFuseLLM": ("stream_chat", "structured_predict", "warm")},
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_methods_have_their_docstrings(site, package):
    page = read(site, f"api/{package}")
    for name, methods in METHODS[package].items():
        assert [method for method in methods if f'id="{package}.{name}.{method}"' not in page] == []
    assert not re.findall(rf'id="{package}\.\w+\._[a-z]\w+"', page)


def test_links_to_source_files_lead_to_their_text(site):
    assert 'href="../source/adafuse_core/decode.py/"' in read(site, "architecture")
    assert "def decode" in re.sub(r"<[^>]+>", "", read(site, "source/adafuse_core/decode.py"))


def test_pages_load_nothing_from_other_sites(site):
    pages = [path for path in site.rglob("*.html") if path.is_file()]
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', text), page
