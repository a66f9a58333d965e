"""The benchmarks run, report hardware and versions, and save what they print. Times are not checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODES = ("guessing", "verify", "lookup", "plain", "uncached")


def run(name, path, *more):
    """The JSON of a quick run. The script fails if two modes give different texts."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--json", str(path), *more]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["quick"]
    assert result["hardware"] in done.stdout
    assert f"benchmarks/{name} --quick" in result["command"]
    assert set(result["versions"]) >= {"python", "torch", "transformers"}
    return result


def test_quality(tmp_path):
    result = run("quality.py", tmp_path / "quality.json")
    contestants = {"ensemble", "aspen", "birch", "rerank"}
    assert result["n"] == 6
    assert set(result["by_kind"]) == {"fact", "composed", "translation"}
    for shares in (result["accuracy"], result["interval"], *result["by_kind"].values()):
        assert set(shares) == contestants
        assert all(0 <= value <= 1 for value in shares.values())
    assert result["accuracy"]["ensemble"] > max(result["accuracy"]["aspen"], result["accuracy"]["birch"])
    assert set(result["lead_of_ensemble"]) == contestants - {"ensemble"}


def test_langchain_peers(tmp_path):
    rows = run("langchain_peers.py", tmp_path / "langchain_peers.json")["rows"]
    assert len(rows) == 20
    assert not {row["situation"]: row["ChatAdaFuse"] for row in rows if not row["ChatAdaFuse"]["good"]}


def test_cost(tmp_path):
    result = run("cost.py", tmp_path / "cost.json")
    assert result["same_text"]
    for key in ("regimes", "regimes_one_branch"):
        assert set(result[key]) == {"confident", "mixed", "unsure"}
        for figures in result[key].values():
            assert all(figures[mode] > 0 for mode in (*MODES, "single"))
            assert all(figures["tokens"][mode] > 0 for mode in MODES)
            assert figures["tokens"]["uncached"] > figures["tokens"]["plain"]
            assert 0 <= figures["share"] <= 1
            assert figures["tokens_per_word"] > 0
    columns = {"guessing", "plain", "uncached", "written", "agreed"}
    assert all(set(row) == columns for row in result["tokens_per_word_at"].values())


def test_latency(tmp_path):
    result = run("latency.py", tmp_path / "latency.json")
    seen = {(row["pair"], row["branches"], row["mode"]) for row in result["rows"]}
    modes = ("guessing", "plain", "uncached")
    assert seen == {(p, b, m) for p in ("agreeing", "disagreeing") for b in (1, 3) for m in modes}
    assert all(row["cpu_ms"] > 0 and row["wall_ms"] > 0 and row["same_text"] for row in result["rows"])
    assert all(row["agreed"] == 1 for row in result["rows"] if row["pair"] == "agreeing")
    assert len(result["summary"]) == 8
    assert result["memory"]["scoring_peak_mib"] > 0
    assert result["memory"]["prefix_kv_mib"] > 0


def test_first_words(tmp_path):
    result = run("throughput.py", tmp_path / "first.json", "--first-word")
    assert all(result[name]["median_ms"] > 0 for name in ("alone", "beside", "round"))


@pytest.mark.parametrize("shape", [(), ("--shape", "tiny")])
def test_throughput(tmp_path, shape):
    result = run("throughput.py", tmp_path / "throughput.json", *shape)
    assert all(row["same_texts"] == 1 for row in result["rows"])
    assert [row["concurrent"] for row in result["rows"]] == [1, 2, 4]
    assert len({row["words"] for row in result["rows"]}) == 1
    assert all(row["words_per_second"] > 0 and row["tokens_held"] > 0 for row in result["rows"])


def test_grammar(tmp_path):
    result = run("grammar.py", tmp_path / "grammar.json")
    assert [row["name"] for row in result["vocabularies"]] == ["aspen", "birch"]
    assert all(row["build_seconds"] > 0 and row["mask_microseconds"] > 0 for row in result["vocabularies"])
    assert result["any_text"]["same_text"]
    assert result["any_text"]["free_ms_per_word"] > 0
    assert 0 < result["schema"]["forced_share"] < 1
