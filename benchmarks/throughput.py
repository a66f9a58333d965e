"""Words per second and memory of concurrent requests, decided by the paper's rule.

    python benchmarks/throughput.py --threads 2 --json PATH
    python benchmarks/throughput.py --threads 2 --longest 90 --budget 96 --prompts 96 --json PATH
    python benchmarks/throughput.py --device cuda --shape 8b --json PATH
    python benchmarks/throughput.py --first-word --threads 1 --json PATH
    python benchmarks/throughput.py --models FOLDER FOLDER --prompts 8 --budget 16 --concurrency 1 4 8 --json PATH

The first command mostly measures prefill, the second decoding. The small models of the package continue plain documents
of about 20 to 400 (or 90) tokens (passages of the curriculum with held-out names, the first ones of a seeded
generator). Every row answers the same prompts at another concurrency; the texts must equal those of concurrency 1.
With `--shape`, two models with random weights that never agree are used (see `random_models.py`), the worst case; in
half precision a few texts differ, where two choices are nearly equal. With `--models`, these models continue
prose of the same lengths; their texts must be equal in float64.
With `--first-word`: time to the first word of a short prompt, alone and while eight other answers are written.
Memory: the KV cache of running requests, sampled during the run.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import eq
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoTokenizer

import common
from adafuse_core import CancelledError, Ensemble, RoundDone, TextDelta
from given_models import prose
from random_models import LLAMA, QWEN, SPREADS, RandomModels, shapes
from training.curriculum import reading

CONCURRENCY = (1, 2, 4, 8, 16, 32)
SHORTEST = 20  # tokens of a prompt
LONG_ONES = 8  # answers beside a short prompt


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=32, help="prompts per row (default: 32)")
    parser.add_argument("--longest", type=int, default=400, help="tokens of the longest prompt (default: 400)")
    parser.add_argument("--budget", type=int, default=64, help="maximum tokens of an answer (default: 64)")
    parser.add_argument(
        "--dtype", help="of the weights (default: float32; bfloat16 for 8b; that of given models' files)"
    )
    parser.add_argument("--models", nargs="+", help="measure these models: folders or names on the Hugging Face Hub")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=CONCURRENCY, help="rows of the table (default: 1 2 4 8 16 32)"
    )
    parser.add_argument("--shape", choices=tuple(shapes()), help="random weights of this shape, not the small models")
    parser.add_argument(
        "--first-word", action="store_true", help="measure the wait of a short prompt beside long answers"
    )
    parser.add_argument("--bandwidth", type=float, default=4.3, help="of the GPU's memory, TB/s (default: 4.3)")
    args = parser.parse_args()
    result = common.prepare(args, common.TIMED)
    usual = "auto" if args.models else "bfloat16" if args.shape == "8b" else "float32"
    args.dtype = args.dtype or usual
    concurrency, n, budget = (args.concurrency, args.prompts, args.budget) if not args.quick else ((1, 2, 4), 4, 8)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if args.models:
            result |= {"models": args.models}
            ensemble = stack.enter_context(
                common.ensemble(args.models, args.device, args.dtype, "guessing", **common.TIMED)
            )
            tokenizer = AutoTokenizer.from_pretrained(common.folder_of(args.models[0]))
            prompts = [prose(tokenizer, length) for length in lengths_up_to(args.longest, n)]
        elif args.shape is None:
            ensemble = stack.enter_context(common.small_ensemble(args.device, args.dtype, "guessing", **common.TIMED))
            prompts = documents(ensemble, n, args.longest)
        else:
            models = RandomModels(args.device, args.dtype, Path(folder), shapes()[args.shape])
            result |= {"shape": args.shape} | models.sizes(args.bandwidth)
            ensemble = stack.enter_context(models.ensemble((LLAMA, QWEN), SPREADS["confident"], "guessing", 3))
            prompts = [models.prompt(length) for length in lengths_up_to(args.longest, n)]
        if args.first_word:
            result |= first_words(ensemble, prompts, 3 if args.quick else 30)
        else:
            exact = ("float64",) if args.models else ("float32", "float64")
            result |= measure(ensemble, prompts, concurrency, budget, exact=args.dtype in exact)
    result["dtype"] = args.dtype
    (show_first_words if args.first_word else show)(result)
    common.finish(result, args.json)


def measure(
    ensemble: Ensemble, prompts: Sequence[str], concurrency: Sequence[int], budget: int, *, exact: bool
) -> dict[str, Any]:
    """One row per concurrency."""
    answer(ensemble, prompts[:2], 1, budget)  # warm-up
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    for number in concurrency:
        answers, row = answer(ensemble, prompts, number, budget)
        texts = texts or answers
        if exact:
            check(texts, answers, number)
        row["same_texts"] = sum(map(eq, texts, answers)) / len(texts)
        rows.append(row | {"speed_up": row["words_per_second"] / (rows or [row])[0]["words_per_second"]})
    lengths = [max(ensemble.count_tokens(prompt).values()) for prompt in prompts]
    return {
        "prompts": len(prompts),
        "prompt_tokens": [min(lengths), max(lengths)],
        "rows": rows,
        "cache": [member["cache"] for member in ensemble.describe()["members"]],
    }


def first_words(ensemble: Ensemble, prompts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Milliseconds to the first word of the shortest prompt, alone and beside long answers, and of a round of those."""
    short = min(prompts, key=len)
    alone = [first_word(ensemble, short) for _ in range(repeats + 1)][1:]  # the first one warms up
    stop, rounds = threading.Event(), list[float]()
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(ThreadPoolExecutor(LONG_ONES))
        stack.callback(stop.set)
        for number in range(LONG_ONES):
            others.submit(keep_answering, ensemble, prompts[number % len(prompts)], stop, rounds)
        while len(rounds) < LONG_ONES:
            time.sleep(0.01)
        beside = [first_word(ensemble, short) for _ in range(repeats)]
    figures = {"alone": alone, "beside": beside, "round": rounds}
    return {name: {"median_ms": median(values) * 1e3, "most_ms": max(values) * 1e3} for name, values in figures.items()}


def first_word(ensemble: Ensemble, prompt: str) -> float:
    """Seconds to the first text."""
    began = time.perf_counter()
    with contextlib.closing(ensemble.stream(prompt)) as events:
        next(event for event in events if isinstance(event, TextDelta))
        return time.perf_counter() - began


def keep_answering(ensemble: Ensemble, prompt: str, stop: threading.Event, rounds: list[float]) -> None:
    """Answer again and again, and note how long each round takes."""
    with contextlib.suppress(CancelledError):
        while not stop.is_set():
            began = time.perf_counter()
            for event in ensemble.stream(prompt, cancel=stop, max_new_tokens=512):
                if isinstance(event, RoundDone):
                    rounds.append(time.perf_counter() - began)
                    began = time.perf_counter()


def show_first_words(result: dict[str, Any]) -> None:
    names = {
        "alone": "first word, alone",
        "beside": f"first word beside {LONG_ONES} answers",
        "round": "a round of those",
    }
    rows = [[text, result[name]["median_ms"], result[name]["most_ms"]] for name, text in names.items()]
    bound = 3 * result["alone"]["median_ms"] + result["round"]["median_ms"]
    common.show("a short prompt", ["", "median ms", "most ms"], [*rows, ["three times alone and a round", bound, None]])


def lengths_up_to(longest: int, n: int) -> list[int]:
    """Evenly spaced prompt lengths, shuffled."""
    lengths = [SHORTEST + (longest - SHORTEST) * number // max(1, n - 1) for number in range(n)]
    random.Random("lengths").shuffle(lengths)
    return lengths


def documents(ensemble: Ensemble, n: int, longest: int) -> list[str]:
    """Plain texts to continue, with evenly spaced lengths."""
    rng = random.Random("documents")
    texts = []
    for goal in sorted(lengths_up_to(longest, n)):
        lines = ["Context:", reading.new_passages(rng, 1, held_out=True)[0].text]
        while max(ensemble.count_tokens("\n".join(lines)).values()) < goal - SHORTEST:
            lines.append(reading.new_passages(rng, 1, held_out=True)[0].text)
        texts.append("\n".join(lines) + "\nThe")
    rng.shuffle(texts)
    return texts


def answer(ensemble: Ensemble, prompts: Sequence[str], number: int, budget: int) -> tuple[list[str], dict[str, Any]]:
    """The answers to all prompts at concurrency `number`, and the figures."""
    before = common.counts(ensemble)
    with Sampler(ensemble) as sampler:
        wall, cpu = time.perf_counter(), time.process_time()
        answers: Any = ensemble.batch(prompts, max_concurrency=number, max_new_tokens=budget)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    spent = common.counts(ensemble) - before
    words = sum(common.count_words(one.text) for one in answers)
    return [one.text for one in answers], {
        "concurrent": number,
        "words": words,
        "seconds": wall,
        "words_per_second": words / wall,
        "cpu_ms_per_word": cpu / words * 1e3,
        "forwards_per_word": sum(spent.forwards.values()) / words,
        "tokens_held": sampler.peak,
        "kv_mib": sampler.peak_bytes / 2**20,
    }


def check(expected: Sequence[str], got: Sequence[str], number: int) -> None:
    for index, (ours, theirs) in enumerate(zip(expected, got, strict=True)):
        if ours != theirs:
            raise SystemExit(f"prompt {index}, concurrency {number}: {theirs!r}\nconcurrency 1: {ours!r}")


class Sampler:
    """Samples the KV cache of an ensemble in a separate thread.

    Attributes:
        peak: Maximum number of tokens, all members together.
        peak_bytes: Maximum size of their keys and values.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.peak = self.peak_bytes = 0
        self._backends = [
            (member.backend, common.token_bytes(member.backend.model.module)) for member in ensemble.members
        ]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            held = [(backend.tokens_held(), size) for backend, size in self._backends]
            self.peak = max(self.peak, sum(tokens for tokens, _ in held))
            self.peak_bytes = max(self.peak_bytes, sum(tokens * size for tokens, size in held))


def show(result: dict[str, Any]) -> None:
    rows = [
        [
            row["concurrent"],
            row["words_per_second"],
            f"{row['speed_up']:.2f}x",
            row["cpu_ms_per_word"],
            row["forwards_per_word"],
            row["tokens_held"],
            row["kv_mib"],
            f"{row['same_texts']:.0%}",
        ]
        for row in result["rows"]
    ]
    shortest, longest = result["prompt_tokens"]
    title = f"{result['prompts']} prompts of {shortest} to {longest} tokens, {result['rows'][0]['words']} words in all"
    columns = ["at once", "words / s", "speed-up", "CPU ms / word", "forwards / word", "most KV tokens held", "MiB"]
    common.show(title, [*columns, "same texts"], rows)
    if floor := result.get("weight_read_floor_ms"):
        print("reading the weights once takes", ", ".join(f"{ms:.2f} ms ({name})" for name, ms in floor.items()))


if __name__ == "__main__":
    main()
