"""Shared by the benchmarks: arguments, hardware and versions, tables, counters, models."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers

from adafuse_core import Ensemble
from adafuse_core.evaluation.statistics import RESAMPLES, Estimate, bootstrap
from adafuse_core.small_models import NAMES, path

# Engine modes: options of the ensemble and of each member.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "guessing": ({"speculation": "auto"}, {}),
    "verify": ({"speculation": "verify"}, {}),
    "lookup": ({"speculation": "lookup"}, {}),
    "plain": ({"speculation": "off"}, {}),
    "no graphs": ({"speculation": "auto"}, {"cuda_graphs": False}),
    "uncached": ({"speculation": "off"}, {"kv_store": "prefill", "selftest": "always"}),
}

# Options of all measured members: a prompt that is answered repeatedly is read every time, as `generate` does.
FORGETFUL = {"prefix_cache": False}

# The rule of the ensembles whose passes and times are measured.
TIMED = {"strategy": "adafuse"}


def arguments(documentation: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its figures mean little")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch (default: 1)")
    return parser


def prepare(args: argparse.Namespace, rule: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Set up PyTorch; returns hardware, versions, command, and the rule that is measured, if there is just one."""
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    hardware = f"{os.cpu_count()} CPU cores, {platform.machine()}, {args.threads} thread{'s' * (args.threads > 1)} used"
    if args.device.startswith("cuda"):
        hardware = f"{torch.cuda.get_device_name(args.device)}, {hardware}"
    return {
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "quick": args.quick,
        **(rule or {}),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table: floats with three significant digits, None as a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=120).print(table)


def finish(result: Mapping[str, Any], path: Path | None) -> None:
    """Print hardware, versions and command, and write the result."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    if "strategy" in result:
        print(f"Measured with strategy={result['strategy']!r}")
    print(f"{result['hardware']}; {versions}\n{result['command']}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@contextmanager
def loading(mode: str) -> Iterator[None]:
    """Context for loading models; mode "uncached" disables their own cache, so every pass reads the whole context."""
    if mode != "uncached":
        yield
        return
    no_cache = (None, ", recomputing the context at every step")
    with mock.patch("adafuse_core.engine.store_choice.probe_cache", return_value=no_cache):
        yield


def small_ensemble(device: str, dtype: str, mode: str, folder: Path | None = None, **options: Any) -> Ensemble:
    """A loaded ensemble of the small models, or of the models with these names in `folder`, in one of the modes."""
    models = [str(folder / name) if folder else f"small:{name}" for name in NAMES]
    return ensemble(models, device, dtype, mode, **options)


def ensemble(models: Sequence[str], device: str, dtype: str, mode: str, **options: Any) -> Ensemble:
    """A loaded ensemble of these models in one of the modes."""
    of_ensemble, of_member = MODES[mode]
    placed = {"device": device, "dtype": dtype, **FORGETFUL}
    members = [{"model": model, **placed, **of_member} for model in models]
    with loading(mode):
        return Ensemble({"members": members, **of_ensemble, **options}).load()


def folder_of(model: str) -> str:
    """What transformers loads for a model: the folder of `small:NAME`, other names as they are."""
    return str(path(model.removeprefix("small:"))) if model.startswith("small:") else model


def mean_lead(leads: Iterable[tuple[Hashable, float]], resamples: int = RESAMPLES) -> Estimate:
    """The mean lead over answers `(question, lead)`, with its interval.

    Several rows may ask the same question, so questions are resampled, each with all answers to it.
    """
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for question, lead in leads:
        sums[question][0] += lead
        sums[question][1] += 1
    return bootstrap(list(sums.values()), lambda total: float(total[0] / total[1]), resamples=resamples)


@dataclass
class Counts:
    """Number of forward passes and of tokens read, per member."""

    forwards: dict[str, int]
    tokens: dict[str, int]

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            {name: value - before.forwards[name] for name, value in self.forwards.items()},
            {name: value - before.tokens[name] for name, value in self.tokens.items()},
        )


def counts(ensemble: Ensemble) -> Counts:
    """The current counters of all members."""
    models = {member.name: member.backend.model for member in ensemble.members}
    return Counts(
        {name: model.forwards for name, model in models.items()},
        {name: model.tokens for name, model in models.items()},
    )


def token_bytes(module: Any) -> int:
    """Bytes of the keys and values of one token."""
    config = module.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head * module.dtype.itemsize)


def share_confident(rounds: Sequence[Any], tau: float) -> float:
    """Share of margins that are at least tau."""
    margins = [margin for played in rounds for draft in played.drafts for margin in draft.margins]
    return sum(margin >= tau for margin in margins) / len(margins)


def count_words(text: str) -> int:
    """Number of words, at least one."""
    return max(1, len(text.split()))


def pairs(text: str) -> list[tuple[str, str]]:
    """Pairs of neighbouring words."""
    return list(itertools.pairwise(text.split()))


def repeats(text: str) -> float:
    """Share of word pairs that occur earlier in the text."""
    found = pairs(text)
    return 1 - len(set(found)) / len(found) if found else 0.0


def copied(text: str, prompt: str) -> float:
    """Share of word pairs that occur in the prompt."""
    found, in_prompt = pairs(text), set(pairs(prompt))
    return sum(pair in in_prompt for pair in found) / len(found) if found else 0.0


def ratio(value: float, base: float) -> str:
    """Such as "3.1x"."""
    return f"{value / base:.2f}x" if base else "-"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
