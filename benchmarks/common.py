"""What the benchmarks share: arguments, the line that says what ran where, tables, the counters, models."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from adafuse_core.small_models import NAMES

# What the engine may do, as options of the ensemble and of each member.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "guessing": ({"speculation": "auto"}, {}),
    "verify": ({"speculation": "verify"}, {}),
    "lookup": ({"speculation": "lookup"}, {}),
    "plain": ({"speculation": "off"}, {}),
    "no graphs": ({"speculation": "auto"}, {"cuda_graphs": False}),
    "uncached": ({"speculation": "off"}, {"kv_store": "prefill"}),
}


def arguments(documentation: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, to see that it runs; the figures mean little"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU (default: 1)")
    return parser


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Set up PyTorch and say what runs where."""
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
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> None:
    """Print a table; floats with three figures, None as a dash."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(width=120).print(table)


def finish(result: Mapping[str, Any], path: Path | None) -> None:
    """Print the line that says what ran where, and write the result."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"{result['hardware']}; {versions}\n{result['command']}")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@contextmanager
def loading(mode: str) -> Iterator[None]:
    """Around loading. Without a cache a model's own is not tried out, so every distribution is a pass over all."""
    if mode != "uncached":
        yield
        return
    nothing = (None, ", recomputing the context at every step")
    with mock.patch("adafuse_core.engine.store_choice.probe_cache", return_value=nothing):
        yield


def small_ensemble(device: str, dtype: str, mode: str, folder: Path | None = None, **options: Any) -> Ensemble:
    """The package's small models, or the ones of those names in a folder, in one of the modes; loaded."""
    of_ensemble, of_member = MODES[mode]
    models = [str(folder / name) if folder else f"small:{name}" for name in NAMES]
    members = [{"model": model, "device": device, "dtype": dtype, **of_member} for model in models]
    with loading(mode):
        return Ensemble({"members": members, **of_ensemble, **options}).load()


@dataclass
class Counts:
    """Passes over the weights and tokens read so far, per member."""

    forwards: dict[str, int]
    tokens: dict[str, int]

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            {name: value - before.forwards[name] for name, value in self.forwards.items()},
            {name: value - before.tokens[name] for name, value in self.tokens.items()},
        )


def counts(ensemble: Ensemble) -> Counts:
    """The counters of all members as they stand."""
    models = {member.name: member.backend.model for member in ensemble.members}
    return Counts(
        {name: model.forwards for name, model in models.items()},
        {name: model.tokens for name, model in models.items()},
    )


def share_confident(rounds: Sequence[Any], tau: float) -> float:
    """Share of the word starts looked at whose margin is at least tau."""
    margins = [margin for played in rounds for draft in played.drafts for margin in draft.margins]
    return sum(margin >= tau for margin in margins) / len(margins)


def count_words(text: str) -> int:
    """Words of a text, at least one."""
    return max(1, len(text.split()))


def pairs(text: str) -> list[tuple[str, str]]:
    """Neighbouring words."""
    return list(itertools.pairwise(text.split()))


def repeats(text: str) -> float:
    """Share of the pairs of neighbouring words that stood in the text before."""
    found = pairs(text)
    return 1 - len(set(found)) / len(found) if found else 0.0


def copied(text: str, prompt: str) -> float:
    """Share of the pairs of neighbouring words that stand in the prompt too."""
    found, there = pairs(text), set(pairs(prompt))
    return sum(pair in there for pair in found) / len(found) if found else 0.0


def ratio(value: float, base: float) -> str:
    """Such as "3.1x"."""
    return f"{value / base:.2f}x" if base else "-"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
