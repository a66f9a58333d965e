"""Time per word of the paper's rule, compared with each member alone and with the rule without a cache.

    python benchmarks/latency.py --json PATH
    python benchmarks/latency.py --device cuda --shape 8b --json PATH
    python benchmarks/latency.py --models FOLDER FOLDER --words 12 --json PATH

Without `--models`: two models with random weights, different architectures and tokenizers. Their time per pass is that
of trained models of this shape; text and margins are not. So two properties are set by hand. The output head is scaled,
which changes the margins (the share of confident word starts is printed). The members either share their weights and
propose the same words ("agreeing", the best case: nothing to score), or never agree ("disagreeing", the worst case:
everything is scored, and half of the drafts are discarded). Trained members lie in between.

The text hardly repeats (see `random_models.py`; the share of repeated word pairs is printed), so prompt lookup finds
almost nothing.

With `--models`: these models, which continue prose, after two prompt lengths.

Time per word is measured from the first round to the last, without the prompt; for `generate` of transformers from the
first token to the last. `uncached` runs for half of the words, at one prompt length, with the prompt included: it reads
the prompt at every step anyway.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria

import common
from adafuse_core import RoundDone, Span
from adafuse_core.members.base import Opening
from adafuse_core.rounds import DraftPlan
from given_models import GivenModels
from random_models import LLAMA, QWEN, SPREADS, TWIN, RandomModels, shapes

Models = RandomModels | GivenModels
PAIRS: dict[str, tuple[str, ...]] = {"agreeing": (LLAMA, TWIN), "disagreeing": (LLAMA, QWEN)}
MIB = 2**20


@dataclass
class Timed:
    """CPU and wall seconds per word, and statistics of the run."""

    cpu: float
    wall: float
    words: int
    forwards: float = 0.0
    share: float = 0.0
    agreed: float = 0.0
    repeats: float = 0.0
    text: str = ""


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--shape", choices=("60m", "8b"), default="60m", help="of each model (default: 60m)")
    parser.add_argument("--words", type=int, default=24, help="words timed per run (default: 24)")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="of the GPU's memory, TB/s (default: 4.3)")
    parser.add_argument("--models", nargs="+", help="measure these models: folders or names on the Hugging Face Hub")
    parser.add_argument("--dtype", help="with --models: of the weights (default: that of the files)")
    args = parser.parse_args()
    result = common.prepare(args, common.TIMED)
    with tempfile.TemporaryDirectory() as folder:
        bench, lengths, middle = given(args) if args.models else made(args, Path(folder))
        result |= {"dtype": bench.models.dtype, "words_per_run": bench.words} | bench.models.sizes(args.bandwidth)
        if not args.models:
            result |= {"shape": shapes()["tiny" if args.quick else args.shape]}
        result["rows"] = []
        for pair in bench.pairs:
            for regime in bench.regimes:
                for length in lengths if regime == bench.first_regime else (middle,):
                    result["rows"] += bench.rows(pair, regime, length, uncached=length == middle)
        result["memory"] = bench.memory(lengths[-1])
    result["summary"] = summary(result["rows"])
    show(result, middle)
    common.finish(result, args.json)


def made(args: argparse.Namespace, folder: Path) -> tuple[Bench, Sequence[int], int]:
    """Random models, the lengths of the prompts, and the length at which all modes run."""
    dtype = "bfloat16" if args.shape == "8b" else "float32"
    models = RandomModels(args.device, dtype, folder, shapes()["tiny" if args.quick else args.shape])
    if args.quick:
        return Bench(models, PAIRS, {"confident": SPREADS["confident"]}, words=4), (64,), 64
    return Bench(models, PAIRS, SPREADS, words=args.words), (128, 512, 2048), 512


def given(args: argparse.Namespace) -> tuple[Bench, Sequence[int], int]:
    """As `made`, with the models of the user."""
    models = GivenModels(args.device, args.dtype or "auto", args.models)
    bench = Bench(models, {"given": tuple(args.models)}, {"as trained": 1.0}, words=4 if args.quick else args.words)
    return bench, (64,) if args.quick else (128, 512), 64 if args.quick else 128


class Bench:
    """Times pairs of models.

    Args:
        models: Loads models and ensembles.
        pairs: Names of the models that answer together, by title.
        regimes: Factors on the output heads of random models, by title; the modes are compared in the first one.
        words: Words timed per run.
    """

    def __init__(
        self, models: Models, pairs: Mapping[str, tuple[str, ...]], regimes: Mapping[str, float], *, words: int
    ) -> None:
        self.models, self.pairs, self.regimes, self.words = models, pairs, regimes, words
        self.device = models.device
        self.first_regime = next(iter(regimes))

    def rows(self, pair: str, regime: str, length: int, *, uncached: bool) -> list[dict[str, Any]]:
        """All runs with one prompt length."""
        names, spread = self.pairs[pair], self.regimes[regime]
        prompt = self.models.prompt(length)
        alone = {name: self.alone(name, spread, prompt) for name in names}
        cpu, wall = (sum(getattr(one, kind) for one in alone.values()) for kind in ("cpu", "wall"))
        rows = []
        for branches in (1, 3):
            for mode in (*self.modes(), *(["uncached"] if uncached and regime == self.first_regime else [])):
                timed = self.together(names, spread, prompt, mode, branches)
                rows.append(
                    {
                        "pair": pair,
                        "regime": regime,
                        "prompt_tokens": length,
                        "branches": branches,
                        "mode": mode,
                        "cpu_ms": timed.cpu * 1e3,
                        "wall_ms": timed.wall * 1e3,
                        "words": timed.words,
                        "forwards": timed.forwards,
                        "share": timed.share,
                        "agreed": timed.agreed,
                        "repeats": timed.repeats,
                        "text": timed.text,
                        "members_cpu_ms": {name: one.cpu * 1e3 for name, one in alone.items()},
                        "members_wall_ms": {name: one.wall * 1e3 for name, one in alone.items()},
                        "cpu_over_members": timed.cpu / cpu,
                        "wall_over_members": timed.wall / wall,
                    }
                )
        cached = [row for row in rows if row["mode"] != "uncached"]
        for row in rows:  # nearly equal choices may differ by rounding, mostly in half precision
            row["same_text"] = row["mode"] == "uncached" or row["text"] == next(
                other["text"] for other in cached if other["branches"] == row["branches"]
            )
        return rows

    def modes(self) -> list[str]:
        """Engine modes; on a GPU also without CUDA graphs."""
        return ["guessing", "plain", *(["no graphs"] if self.device.startswith("cuda") else [])]

    def alone(self, name: str, spread: float, prompt: str) -> Timed:
        """One model with `generate` of transformers."""
        model, tokenizer = self.models.model(name, spread), self.models.tokenizer(name)
        inputs = tokenizer(prompt, return_tensors="pt").to(self.device)
        clock = Clock(self.device)
        count = 3 * self.words
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, stopping_criteria=[clock]
            )
        words = common.count_words(tokenizer.decode(output[0, inputs["input_ids"].shape[1] + 1 :]))
        cpu, wall = clock.spent()
        return Timed(cpu / words, wall / words, words)

    def together(self, names: Sequence[str], spread: float, prompt: str, mode: str, branches: int) -> Timed:
        """The ensemble, timed from the end of the first round."""
        few = mode == "uncached"
        with self.models.ensemble(names, spread, mode, branches) as ensemble:
            clock = Clock(self.device)
            if few:
                clock.tick()
            before = common.counts(ensemble)
            words, rounds, text = 0, [], ""
            for event in ensemble.stream(prompt, max_new_tokens=None):
                if not isinstance(event, RoundDone):
                    continue
                clock.tick()
                rounds.append(event.round)
                text += event.round.span.text
                if few or len(rounds) > 1:
                    words += len(event.round.span.text.split())
                else:
                    before = common.counts(ensemble)
                if words >= (self.words // 2 if few else self.words):
                    break
            forwards = sum((common.counts(ensemble) - before).forwards.values())
            cpu, wall = clock.spent()
            share = common.share_confident(rounds, ensemble.config.strategy.tau)
        agreed = sum(len({draft.spans for draft in one.drafts}) == 1 for one in rounds) / len(rounds)
        words = max(1, words)  # an answer may end in its first round
        return Timed(cpu / words, wall / words, words, forwards / words, share, agreed, common.repeats(text), text)

    def memory(self, length: int) -> dict[str, float]:
        """KV cache of a prompt, and the additional memory for scoring eight candidates of three words, in MiB."""
        rng = random.Random(0)
        words = self.models.prompt(512).split()
        spans = [Span(text="".join(f" {word}" for word in rng.choices(words, k=3))) for _ in range(8)]
        names = list(self.pairs.values())[-1]
        with self.models.ensemble(names, self.regimes[self.first_regime], "plain", 3) as ensemble:
            member = ensemble.members[0]
            prefix = member.open(
                Opening(prompt=self.models.prompt(length), max_word_tokens=24, cancel=threading.Event())
            )
            prefix.draft(DraftPlan(tau=0.0, max_words=1, branches=1))
            token = common.token_bytes(member.backend.model.module) / MIB
            held = member.backend.tokens_held()
            extra = self.peak(lambda: prefix.score(spans))
            after = member.backend.tokens_held()
            tokens = prefix.prompt_tokens
            prefix.close()
        return {
            "prompt_tokens": tokens,
            "prefix_kv_mib": tokens * token,
            "held_before_mib": held * token,
            "held_after_mib": after * token,
            "scoring_peak_mib": extra,
            "eight_copies_mib": 8 * tokens * token,
        }

    def peak(self, work: Callable[[], object]) -> float:
        """Peak memory of tensors while `work` runs, minus the memory before, in MiB."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            work()
            return (torch.cuda.max_memory_allocated(self.device) - before) / MIB
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
        peak = now = 0
        for _, change in changes:
            now += change
            peak = max(peak, now)
        return peak / MIB


class Clock(StoppingCriteria):
    """Records CPU and wall time at each tick; as a criterion of `generate` it ticks per token and never stops."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._ticks: list[tuple[float, float]] = []

    def tick(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        self._ticks.append((time.process_time(), time.perf_counter()))

    def spent(self) -> tuple[float, float]:
        """CPU and wall seconds from the first tick to the last."""
        (cpu, wall), (cpu_end, wall_end) = self._ticks[0], self._ticks[-1]
        return cpu_end - cpu, wall_end - wall

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.tick()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ratios of CPU time: uncached to engine, and engine to members alone, where all modes ran."""
    figures = {}
    for uncached in (row for row in rows if row["mode"] == "uncached"):
        same = ("pair", "regime", "prompt_tokens", "branches")
        engine = next(row for row in rows if row["mode"] == "guessing" and all(row[k] == uncached[k] for k in same))
        title = f"{engine['pair']}, B={engine['branches']}"
        figures[f"{title}: uncached / engine"] = uncached["cpu_ms"] / engine["cpu_ms"]
        figures[f"{title}: engine / members alone in turn"] = engine["cpu_over_members"]
    return figures


def show(result: dict[str, Any], middle: int) -> None:
    parameters = ", ".join(f"{name} {count / 1e6:.0f} M" for name, count in result["parameters"].items())
    columns = ["prompt", "B", "mode", "CPU ms", "wall ms", "CPU / alone", "wall / alone", "forwards"]
    columns += ["confident", "agree", "repeats", "words"]
    print(f"{parameters}, {result['dtype']}; all per word. 'alone': each member by transformers'")
    print("generate, one after the other, so many words each; 'agree': share of rounds with equal proposals")
    for pair, regime in dict.fromkeys((row["pair"], row["regime"]) for row in result["rows"]):
        rows = [
            [
                *(row[key] for key in ("prompt_tokens", "branches", "mode", "cpu_ms", "wall_ms")),
                *(f"{row[key]:.2f}x" for key in ("cpu_over_members", "wall_over_members")),
                *(row[key] for key in ("forwards", "share", "agreed", "repeats", "words")),
            ]
            for row in result["rows"]
            if (row["pair"], row["regime"]) == (pair, regime)
        ]
        common.show(f"{pair} members, {regime}", columns, rows)
    if floor := result.get("weight_read_floor_ms"):
        print(
            "reading the weights once takes at least", ", ".join(f"{ms:.2f} ms ({name})" for name, ms in floor.items())
        )
    common.show(
        f"{result['rows'][0]['regime']}, prompt of {middle} tokens, CPU time",
        ["", "ratio"],
        list(result["summary"].items()),
    )
    names = {
        "prefix_kv_mib": "keys and values of the prompt",
        "scoring_peak_mib": "peak while scoring 8 candidates of 3 words, besides",
        "eight_copies_mib": "keys and values, one copy per candidate",
    }
    title = f"memory of one member, prompt of {result['memory']['prompt_tokens']} tokens"
    common.show(title, ["", "MiB"], [[text, result["memory"][key]] for key, text in names.items()])


if __name__ == "__main__":
    main()
