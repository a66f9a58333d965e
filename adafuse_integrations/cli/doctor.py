"""`adafuse doctor`: checks the installation, the machine and the members, and shows hints. `checkup` has the facts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from adafuse_integrations.cli.checkup.hints import NOTE, PROBLEM, WARNING, Hint, hints, is_usable
from adafuse_integrations.cli.checkup.installation import FOR_QUANTIZED, MISSING, OK, Package
from adafuse_integrations.cli.checkup.machine import Machine, Memory
from adafuse_integrations.cli.checkup.members import MemberFacts
from adafuse_integrations.cli.checkup.report import Report, Surroundings, report, surroundings
from adafuse_integrations.cli.checkup.storage import Storage
from adafuse_integrations.cli.exit_status import DONE, FAILED
from adafuse_integrations.cli.options import add_ensemble_options, add_json_option, chosen_config

HELP = "check packages, devices, memory and models, and say what to improve; exit status 1 if a model can't be loaded"

_LABELS = {  # of facts in `Ensemble.describe()`; others are shown under their own names
    "cache": "KV store",
    "vocab_size": "vocabulary",
    "masks": "grammars",
}
_NOT_SHOWN = ("name", "place", "top", "full_distribution", "dtype", "device", "max_context", "chat_template")
_TOKENS = ("context_window", "max_kv_tokens", "vocab_size")
_STYLES = {PROBLEM: "red", WARNING: "yellow", NOTE: "cyan"}
_LABEL_WIDTH = 15  # of the first column, if its labels are short

Rows = Iterable[tuple[str, str]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_ensemble_options(parser)
    parser.add_argument(
        "--no-load",
        action="store_true",
        help="only look at files on disk. By default, models are loaded, and downloaded if necessary.",
    )
    add_json_option(parser, "facts and hints")


def run(args: argparse.Namespace) -> int:
    """Print the report. The part that needs no models comes first, in case that loading them ends the process."""
    config = chosen_config(args)
    around = surroundings()
    console = Console(highlight=False)
    if not args.json:
        console.print(_surroundings(around))
    found = report(config, around, load=not args.no_load, progress=sys.stderr.isatty())
    advice = hints(found)
    if args.json:
        print(_json(found, advice))
    else:
        console.print(_members(found), _advice(advice))
    return DONE if is_usable(advice) else FAILED


def _json(found: Report, advice: list[Hint]) -> str:
    facts = dataclasses.asdict(found)
    values = {**facts.pop("surroundings"), **facts, "hints": [dataclasses.asdict(hint) for hint in advice]}
    return json.dumps({"usable": is_usable(advice), **values}, indent=2)


def _surroundings(around: Surroundings) -> RenderableType:
    return Group(
        _section("Packages", _packages(around.packages)),
        _section("Machine", _machine(around.machine, around.memory)),
        _section("On disk", _storage(around.storage)),
    )


def _members(found: Report) -> RenderableType:
    sections = [_section(f"Member {member.name}", _member(member)) for member in found.members]
    rows = [(name, str(value)) for name, value in found.together.settings.items()]
    if found.together.tools:
        rows.append(("tools", found.together.tools))
    if any(member.description for member in found.members):
        rows.append(("free memory", _gigabytes(found.memory_after)))
    return Group(*sections, _section("Ensemble", rows))


def _advice(advice: list[Hint]) -> RenderableType:
    if not advice:
        return Text("No problems found.", "green")
    shown: list[RenderableType] = [Text("Hints", "bold")]
    for hint in advice:
        text = Text.assemble((hint.level, _STYLES[hint.level]), f" {hint.about}: {hint.text}")
        shown += [Padding(text, (0, 0, 0, 2)), Padding(Text(hint.cure, "dim"), (0, 0, 0, 4))]
    return Group(*shown)


def _section(title: str, rows: Rows) -> RenderableType:
    table = Table.grid(padding=(0, 1), pad_edge=True)
    table.add_column(style="dim", min_width=_LABEL_WIDTH, overflow="fold")
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    return Group(Text(title, "bold"), table, Text())


def _packages(found: Iterable[Package]) -> Iterator[tuple[str, str]]:
    unused = [package.name for package in found if package.state == MISSING and package.purpose == FOR_QUANTIZED]
    for package in found:
        if package.name not in unused:
            yield package.name, _version(package)
    if unused:
        yield "not installed", f"{', '.join(unused)} (only for models that were quantized with them)"


def _version(package: Package) -> str:
    if package.state == MISSING:
        return f"missing: {package.install}"
    return f"{package.version}" + ("" if package.state == OK else f" (adafuse supports {package.wanted})")


def _machine(machine: Machine, memory: tuple[Memory, ...]) -> Iterator[tuple[str, str]]:
    yield "python", f"{machine.python} on {machine.system}"
    native = {True: ("native bfloat16",), False: ("no native bfloat16",), None: ()}[machine.cpu_bfloat16]
    yield "processor", ", ".join([machine.cpu, f"{machine.cores} cores", *machine.cpu_features, *native])
    if machine.torch_build:
        yield "torch", f"built for {machine.torch_build}, threads: {machine.torch_threads}"
    for gpu in machine.gpus:
        yield gpu.device, f"{gpu.name}, {'native' if gpu.bfloat16 else 'no native'} bfloat16"
    if not machine.gpus:
        yield "GPU", "none"
    if memory:
        yield "free memory", _gigabytes(memory)


def _storage(storage: Storage) -> Iterator[tuple[str, str]]:
    kinds = [f"{kind.entries} {kind.name} ({kind.size_bytes / 1e6:,.1f} MB)" for kind in storage.results]
    writable = "writable" if storage.writable else "not writable"
    yield "results", f"{storage.results_folder}: {', '.join(kinds) or 'empty'}, {writable}"
    yield "models", f"{storage.models_folder}: {storage.free_bytes / 1e9:,.1f} GB free on this disk"
    yield "downloads", "off (HF_HUB_OFFLINE)" if storage.offline else "on"
    yield "HF token", "set" if storage.token else "not set (gated models need one: hf auth login)"


def _member(member: MemberFacts) -> Iterator[tuple[str, str]]:
    yield "model", member.model + (f" with the adapter {member.adapter}" if member.adapter else "")
    if member.error:
        yield "can't be loaded", member.error
        return
    facts = member.description
    if not facts:
        yield "weights", "not loaded, on disk" if member.on_disk else "not loaded, not on disk"
        yield "context window", "unknown" if member.context_window is None else f"{member.context_window:,} tokens"
    else:
        size = "" if member.parameters is None else f", {_count(member.parameters)} parameters"
        yield "runs on", f"{facts['device']} in {facts['dtype']}{size}"
    for name, value in facts.items():
        if name == "max_kv_tokens":
            yield "KV memory", f"{_shown(name, value)}, prefix cache {'on' if member.prefix_cache else 'off'}"
        elif name not in _NOT_SHOWN and value != member.model:  # the weights are often from the folder of the model
            yield _LABELS.get(name, name.replace("_", " ")), _shown(name, value)
    yield "chat template", _template(member)
    if member.thought_tags:
        yield "thought tags", member.thought_tags


def _template(member: MemberFacts) -> str:
    if not member.chat_template:
        return "unknown" if member.chat_template is None else "none"
    if member.shows_tools is None:
        return "yes"
    calls = f", calls in the format {member.tool_dialect}" if member.tool_dialect else ""
    return f"yes, shows {'' if member.shows_tools else 'no '}tools{calls}"


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "unbounded" if name in _TOKENS else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:,} tokens" if name in _TOKENS else str(value)


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _gigabytes(memory: Iterable[Memory]) -> str:
    return ", ".join(f"{each.device} {each.free / 1e9:.1f} of {each.total / 1e9:.1f} GB" for each in memory)
