"""The page on LlamaIndex: its list of behaviours matches the tests, its table matches the benchmark."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PAGE = (ROOT / "docs/llama_index.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| .* \| (`test_\w+\.py`(?:, `test_\w+\.py`)*) \|$", PAGE, flags=re.M)


def numbered(path):
    """Numbers of the behaviours in the names of a file's tests."""
    return {int(number) for number in re.findall(r"def test_(\d\d)_", path.read_text(encoding="utf-8"))}


def test_the_page_lists_forty_behaviours():
    assert [int(number) for number, _ in ROWS] == list(range(1, 41))


@pytest.mark.parametrize(("number", "files"), ROWS)
def test_each_behaviour_is_tested_just_where_the_page_says(number, files):
    there = {path.name for path in HERE.glob("test_*.py") if int(number) in numbered(path)}
    assert there == set(re.findall(r"test_\w+\.py", files))


def test_the_table_is_that_of_the_benchmark():
    result = json.loads((ROOT / "benchmarks/results/llama_index_peers.json").read_text(encoding="utf-8"))
    for row in result["rows"]:
        cells = [row["situation"], row["HuggingFaceLLM"]["outcome"], row["AdaFuseLLM"]["outcome"]]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_links_have_existing_targets():
    for target in re.findall(r"\]\((\.\./[^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_our_side_of_the_table_holds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from llama_index_peers import SITUATIONS, Side
    from peers.comparison import situation

    held = {situation(check): check(Side()) for check in SITUATIONS}
    assert not {name: seen.outcome for name, seen in held.items() if not seen.good}
