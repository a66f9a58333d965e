"""How long does a word take, beside what each member needs for one alone, and beside the rule without a cache?

    python benchmarks/latency.py --json PATH
    python benchmarks/latency.py --device cuda --shape 8b --json PATH

Two models of two architectures and two tokenizers, with random weights: time per pass is that of trained models of
this shape, text and margins are not. So the run is put into a regime by hand: the output head is scaled, which spreads
the margins (the share of confident word starts is printed), and members either share their weights and so propose the
same words ("agreeing", the best case: nothing to score), or never do ("disagreeing", the worst case: everything is
scored, and half of it drafted in vain). Real members lie between.

Random models run in circles, which would make looking up look good. So each adds a random vector per position to its
last hidden state, after which hardly anything is written twice (the share of word pairs that stood in the answer before
is printed) and looking up finds next to nothing.

Time per word is that between the first round and the last, so the prompt is not in it; for the `generate` of
transformers that between the first token and the last. `uncached` runs for a few words only, at one length, prompt
included, since it reads the prompt at every step anyway.
"""

from __future__ import annotations

import gc
import json
import random
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config, StoppingCriteria

from adafuse_core import Ensemble, RoundDone, Span
from adafuse_core.rounds import DraftPlan
from adafuse_core.small_models import path

LLAMA, QWEN, TWIN = "llama", "qwen3", "llama-twin"
PAIRS = {"agreeing": (LLAMA, TWIN), "disagreeing": (LLAMA, QWEN)}
SPREADS = {"confident": 60.0, "unsure": 10.0}  # factor on the output head
WINDOW = 4096
MIB = 2**20


def shapes() -> dict[str, dict[str, Any]]:
    """Sizes of the models: what both architectures share."""
    size = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        "60m": dict(zip(size, (768, 2048, 8, 12, 4), strict=True)) | {"vocab_size": 4096},
        "8b": dict(zip(size, (4096, 14336, 32, 32, 8), strict=True)) | {"vocab_size": 128_256},
        "tiny": dict(zip(size, (64, 128, 2, 4, 2), strict=True)) | {"vocab_size": 4096},
    }


@dataclass
class Timed:
    """Seconds per word, of CPU and of wall, and what was done meanwhile."""

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
    args = parser.parse_args()
    result = common.prepare(args)
    args.dtype = "bfloat16" if args.shape == "8b" else "float32"
    lengths: tuple[int, ...] = (128, 512, 2048)
    shape, words, middle, regimes = shapes()[args.shape], args.words, 512, tuple(SPREADS)
    if args.quick:
        shape, words, lengths, middle, regimes = shapes()["tiny"], 4, (64,), 64, ("confident",)
    with tempfile.TemporaryDirectory() as folder:
        write_configs(Path(folder), shape)
        bench = Bench(args, Path(folder), words)
        result |= {"shape": shape, "dtype": args.dtype, "words_per_run": words} | bench.sizes(args.bandwidth)
        result["rows"] = []
        for pair in PAIRS:
            for regime in regimes:
                for length in lengths if regime == "confident" else (middle,):
                    result["rows"] += bench.rows(pair, regime, length, uncached=length == middle)
        result["memory"] = bench.memory(lengths[-1])
    result["summary"] = summary(result["rows"], middle)
    show(result, middle)
    common.finish(result, args.json)


def write_configs(folder: Path, shape: dict[str, Any]) -> None:
    """Folders that hold a tokenizer and a config, and no weights."""
    ends = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
    common_part = {**shape, **ends, "max_position_embeddings": WINDOW, "tie_word_embeddings": False}
    head = shape["hidden_size"] // shape["num_attention_heads"]
    for name, config, tokenizer in (
        (LLAMA, LlamaConfig(**common_part), "aspen"),
        (TWIN, LlamaConfig(**common_part), "aspen"),
        (QWEN, Qwen3Config(**common_part, head_dim=head), "birch"),
    ):
        config.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(path(tokenizer)).save_pretrained(folder / name)


class Bench:
    """Builds models with random weights where they are to run, and times them.

    Args:
        args: Of the command line.
        folder: The models' configs and tokenizers.
        words: To be timed per run.
    """

    def __init__(self, args: Any, folder: Path, words: int) -> None:
        self.device, self.dtype, self.folder, self.words = args.device, args.dtype, folder, words

    def sizes(self, bandwidth: float) -> dict[str, Any]:
        """Parameters of each model, and the time that reading the weights once must take on the GPU."""
        figures: dict[str, Any] = {"parameters": {}}
        for name in (LLAMA, QWEN):
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.folder / name))
            read = model.num_parameters() - model.get_input_embeddings().weight.numel()
            figures["parameters"][name] = model.num_parameters()
            if self.device.startswith("cuda"):
                item = getattr(torch, self.dtype).itemsize
                figures.setdefault("weight_read_floor_ms", {})[name] = read * item / bandwidth / 1e9
        return figures

    def rows(self, pair: str, regime: str, length: int, *, uncached: bool) -> list[dict[str, Any]]:
        """All runs after prompts of one length."""
        names, spread = PAIRS[pair], SPREADS[regime]
        prompt = self.prompt(length)
        alone = {name: self.alone(name, spread, prompt) for name in names}
        cpu, wall = (sum(getattr(one, kind) for one in alone.values()) for kind in ("cpu", "wall"))
        rows = []
        for branches in (1, 3):
            for mode in ("guessing", "plain", *(["uncached"] if uncached and regime == "confident" else [])):
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
        for row in rows:  # rounding may part them where two choices are all but equal, in half precision above all
            row["same_text"] = row["mode"] == "uncached" or row["text"] == next(
                other["text"] for other in cached if other["branches"] == row["branches"]
            )
        return rows

    def prompt(self, tokens: int) -> str:
        """Plain words, about so many tokens of the first model."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder / LLAMA)
        words = [word for word in Path(__file__).read_text(encoding="utf-8").split() if word.isalpha()]
        rng = random.Random(tokens)
        text = " ".join(rng.choices(words, k=tokens))
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return text[: offsets[tokens - 1][1]]

    def alone(self, name: str, spread: float, prompt: str) -> Timed:
        """One model by transformers."""
        model = self.model(name, spread)
        tokenizer = AutoTokenizer.from_pretrained(self.folder / name)
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
        """The ensemble, from the end of the first round on."""
        few = mode == "uncached"
        with self.ensemble(names, spread, mode, branches) as ensemble:
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
                if words >= (3 if few else self.words):
                    break
            forwards = sum((common.counts(ensemble) - before).forwards.values())
            cpu, wall = clock.spent()
            share = common.share_confident(rounds, ensemble.config.tau)
        agreed = sum(len({draft.spans for draft in one.drafts}) == 1 for one in rounds) / len(rounds)
        return Timed(cpu / words, wall / words, words, forwards / words, share, agreed, common.repeats(text), text)

    def memory(self, length: int) -> dict[str, float]:
        """Keys and values of a prompt, and what scoring eight candidates of three words takes besides, in MiB."""
        rng = random.Random(0)
        words = self.prompt(512).split()
        spans = [Span(text="".join(f" {word}" for word in rng.choices(words, k=3))) for _ in range(8)]
        with self.ensemble(PAIRS["disagreeing"], SPREADS["confident"], "plain", 3) as ensemble:
            member = ensemble.members[0]
            prefix = member.open(self.prompt(length), None, max_word_tokens=24, lookup=False, cancel=threading.Event())
            prefix.draft(DraftPlan(tau=0.0, max_words=1, branches=1))
            config = member.backend.model.module.config
            item = getattr(torch, self.dtype).itemsize
            token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item / MIB
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
        """The most memory that tensors take while some work runs, beyond what they took before, in MiB."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            work()
            return (torch.cuda.max_memory_allocated(self.device) - before) / MIB
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        trace = self.folder / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
        most = now = 0
        for _, change in changes:
            now += change
            most = max(most, now)
        return most / MIB

    @contextmanager
    def ensemble(self, names: Sequence[str], spread: float, mode: str, branches: int) -> Iterator[Ensemble]:
        """An ensemble of models made on the spot in place of loaded ones, freed afterwards."""
        of_ensemble, of_member = common.MODES[mode]
        members = [
            {"model": str(self.folder / name), "device": self.device, "dtype": self.dtype, **of_member}
            for name in names
        ]

        class Maker:
            from_pretrained = staticmethod(lambda files, **_: self.model(Path(files).name, spread))

        with mock.patch("adafuse_core.members.loader.AutoModelForCausalLM", Maker):
            ensemble = Ensemble({"members": members, "branches": branches, **of_ensemble}).load()
        try:
            yield ensemble
        finally:
            ensemble.close()
            del ensemble
            if self.device.startswith("cuda"):
                gc.collect()
                torch.cuda.empty_cache()

    def model(self, name: str, spread: float) -> Any:
        """A model with random weights, the same ones for the same architecture; it writes plain words only."""
        config = AutoConfig.from_pretrained(self.folder / name)
        torch.manual_seed(zlib.crc32(config.model_type.encode()))
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, self.dtype)).eval()
        vocab = AutoTokenizer.from_pretrained(self.folder / name).get_vocab()
        plain = [
            index for token, index in vocab.items() if token.lstrip("Ġ▁").isascii() and token.lstrip("Ġ▁").isalpha()
        ]
        head = model.get_output_embeddings().weight
        with torch.no_grad():
            scale = torch.zeros(head.shape[0], 1, dtype=head.dtype, device=head.device)
            scale[plain] = spread
            head.mul_(scale)
        add_positions(model)
        return model


class Clock(StoppingCriteria):
    """Reads CPU time and wall time at each tick; as a criterion of `generate` it ticks per token and stops nothing."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._ticks: list[tuple[float, float]] = []

    def tick(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
        self._ticks.append((time.process_time(), time.perf_counter()))

    def spent(self) -> tuple[float, float]:
        """CPU time and wall time from the first tick to the last."""
        (cpu, wall), (cpu_end, wall_end) = self._ticks[0], self._ticks[-1]
        return cpu_end - cpu, wall_end - wall

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.tick()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def add_positions(model: Any) -> None:
    """Add a random vector for each position to the last hidden states, against running in circles."""
    weight = model.get_output_embeddings().weight
    table = torch.randn(WINDOW, weight.shape[1], dtype=weight.dtype, device=weight.device)
    seen: list[torch.Tensor] = []

    def note(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen[:] = [options["position_ids"] if "position_ids" in options else arguments[1]]

    model.model.rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
    model.model.norm.register_forward_hook(lambda _, __, hidden: hidden + table[seen[0]])


def summary(rows: Sequence[dict[str, Any]], middle: int) -> dict[str, float]:
    """The figures to quote, by CPU time: no cache against the engine, the engine against the members alone."""
    found = {(row["pair"], row["regime"], row["prompt_tokens"], row["branches"], row["mode"]): row for row in rows}
    figures = {}
    for pair in PAIRS:
        for branches in (1, 3):
            engine = found[pair, "confident", middle, branches, "guessing"]
            uncached = found[pair, "confident", middle, branches, "uncached"]
            figures[f"{pair}, B={branches}: uncached / engine"] = uncached["cpu_ms"] / engine["cpu_ms"]
            figures[f"{pair}, B={branches}: engine / members alone in turn"] = engine["cpu_over_members"]
    return figures


def show(result: dict[str, Any], middle: int) -> None:
    parameters = ", ".join(f"{name} {count / 1e6:.0f} M" for name, count in result["parameters"].items())
    columns = ["prompt", "B", "mode", "CPU ms", "wall ms", "CPU / alone", "wall / alone", "forwards"]
    columns += ["confident", "agree", "repeats", "words"]
    print(f"random weights, {parameters}, {result['dtype']}; all per word. 'alone': each member by transformers'")
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
    common.show(f"confident, prompt of {middle} tokens, CPU time", ["", "ratio"], list(result["summary"].items()))
    names = {
        "prefix_kv_mib": "keys and values of the prompt",
        "scoring_peak_mib": "peak while scoring 8 candidates of 3 words, besides",
        "eight_copies_mib": "keys and values, one copy per candidate",
    }
    title = f"memory of one member, prompt of {result['memory']['prompt_tokens']} tokens"
    common.show(title, ["", "MiB"], [[text, result["memory"][key]] for key, text in names.items()])


if __name__ == "__main__":
    main()
