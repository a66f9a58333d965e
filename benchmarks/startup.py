"""Time of a start: the first and the second one of an ensemble, and `from_pretrained` of its models and tokenizers.

Every start is a process of its own that has imported everything before. The first start tests the models, the second
one reads the verdicts from disk. The second table compares the self-test of each model with three passes over a prompt
of 256 tokens, alternately in one process. All times are CPU seconds, medians over the repeats.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
from adafuse_core import Ensemble
from adafuse_core.backends import huggingface
from adafuse_core.engine.forward import Model
from adafuse_core.engine.rounding import sample_ids
from adafuse_core.engine.store_choice import Options, examine
from adafuse_core.members import loader

PROMPT_TOKENS, READS = 256, 3
IMPORTED = (huggingface, loader)  # not part of a start


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = common.arguments(__doc__ or "")
    parser.add_argument(
        "--models", nargs="+", default=["small:aspen", "small:birch"], help="names, folders or GGUF files"
    )
    parser.add_argument("--dtype", default="auto", help="of the weights (default: as saved)")
    parser.add_argument("--repeats", type=int, default=3, help="starts of each kind (default: 3)")
    args = parser.parse_args()
    result = common.prepare(args) | {"models": args.models, "dtype": args.dtype}
    repeats = 1 if args.quick else args.repeats
    result["starts"] = starts(args, repeats)
    result["self_tests"] = [self_test(name, args, repeats) for name in args.models]
    given = result["starts"]["from_pretrained"]
    rows = [[name, seconds, seconds / given] for name, seconds in result["starts"].items()]
    common.show(f"Start of {' + '.join(args.models)}", ["", "CPU s", "to from_pretrained"], rows)
    columns = ["model", "self-test, CPU s", f"{READS} reads of {PROMPT_TOKENS} tokens, CPU s", "ratio", "store"]
    common.show("Self-test", columns, [[row[key] for key in row] for row in result["self_tests"]])
    common.finish(result, args.json)


def starts(args: Any, repeats: int) -> dict[str, float]:
    """CPU seconds of each kind of start."""
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as results:
            for name, start in (("first start", load), ("second start", load), ("from_pretrained", from_pretrained)):
                seconds.setdefault(name, []).append(_in_new_process(start, args, Path(results)))
    return {name: median(values) for name, values in seconds.items()}


def load(args: Any, results: Path) -> float:
    """Load an ensemble whose results of earlier starts are in a folder."""
    with mock.patch("adafuse_core.disk_cache.root", return_value=results):
        members = [{"model": name, "dtype": args.dtype, "device": args.device} for name in args.models]
        return _cpu_seconds(lambda: Ensemble.from_pretrained(*members))


def from_pretrained(args: Any, _: Path) -> float:
    """Load the models and tokenizers with transformers alone."""

    def run() -> None:
        for folder, options in map(_files, args.models):
            AutoTokenizer.from_pretrained(folder, **options)
            AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype, device_map=args.device, **options)

    return _cpu_seconds(run)


def self_test(name: str, args: Any, repeats: int) -> dict[str, Any]:
    """CPU seconds of the self-test of one model, and of reading a prompt `READS` times."""
    folder, options = _files(name)
    model = Model(AutoModelForCausalLM.from_pretrained(folder, dtype=args.dtype, device_map=args.device, **options))
    ids = sample_ids(model, PROMPT_TOKENS)
    model.forward([ids], last=1)  # reads the weights from disk
    tests, reads = [], []
    for _ in range(repeats):
        reads.append(READS * _cpu_seconds(lambda: model.forward([ids], last=1)))
        tests.append(_cpu_seconds(lambda: examine(model, Options())))
    ratio = median(tests) / median(reads)
    return {
        "model": name,
        "test": median(tests),
        "reads": median(reads),
        "ratio": ratio,
        "store": examine(model, Options()).kind,
    }


def _files(name: str) -> tuple[Any, dict[str, str]]:
    """The folder of a model, and the options with which transformers loads it."""
    path = Path(name)
    return (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (common.folder_of(name), {})


def _in_new_process(start: Callable[[Any, Path], float], args: Any, results: Path) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_prepared, start, args, results).result()


def _prepared(start: Callable[[Any, Path], float], args: Any, results: Path) -> float:
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    return start(args, results)


def _cpu_seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - started


if __name__ == "__main__":
    main()
