"""Hints: what is wrong or worth knowing about a report, and what to do. Each function below looks for one problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adafuse_integrations.cli.checkup.installation import ADAFUSE, MISSING, OUTSIDE
from adafuse_integrations.cli.checkup.members import MemberFacts
from adafuse_integrations.cli.checkup.report import Report

PROBLEM, WARNING, NOTE = "problem", "warning", "note"  # a problem stops members from loading
_UNEQUAL = 4  # ratio of parameters from which members count as unequal
_SCARCE = 0.25  # share of memory


@dataclass(frozen=True, kw_only=True)
class Hint:
    """Something that the user may want to change.

    Args:
        level: `PROBLEM`, `WARNING` or `NOTE`.
        about: The member or the part of the installation that is concerned.
        text: What is the case, and what follows from it.
        cure: What to do.
    """

    level: str
    about: str
    text: str
    cure: str


def hints(report: Report) -> list[Hint]:
    """All hints, problems first."""
    found = [hint for look in (*_SURROUNDINGS, *_ENSEMBLE) for hint in look(report)]
    found += [hint for member in report.members for look in _MEMBER for hint in look(member, report)]
    return sorted(found, key=lambda hint: (PROBLEM, WARNING, NOTE).index(hint.level))


def is_usable(found: list[Hint]) -> bool:
    """Whether no problem was found."""
    return all(hint.level != PROBLEM for hint in found)


def _packages(report: Report) -> Iterator[Hint]:
    for package in report.surroundings.packages:
        if package.name == ADAFUSE and package.state == MISSING:
            text = "runs from a source tree without being installed, so versions of other packages were not checked"
            yield Hint(level=WARNING, about=ADAFUSE, text=text, cure="pip install -e . in the source tree")
        elif package.required and package.state == MISSING:
            yield Hint(level=PROBLEM, about=package.name, text="is required, but missing", cure=package.install)
        elif package.state == OUTSIDE:
            text = f"version {package.version} is installed, adafuse supports {package.wanted}"
            yield Hint(level=WARNING, about=package.name, text=text, cure=package.install)


def _torch(report: Report) -> Iterator[Hint]:
    if (error := report.surroundings.machine.torch_error) and not _misses(report, "torch"):
        text = f"can't be imported: {error}"
        yield Hint(level=PROBLEM, about="torch", text=text, cure="install torch again, see https://pytorch.org")


def _gpu_build(report: Report) -> Iterator[Hint]:
    machine = report.surroundings.machine
    if machine.torch_build is None or machine.gpus:
        return
    if machine.torch_build != "CPU":
        text = f"is built for {machine.torch_build}, but finds no GPU" + (
            f": {machine.gpu_error}" if machine.gpu_error else ""
        )
        cure = (
            "check the driver (nvidia-smi or rocm-smi) and CUDA_VISIBLE_DEVICES; on a machine without a GPU, ignore it"
        )
        yield Hint(level=WARNING if machine.nvidia_driver else NOTE, about="torch", text=text, cure=cure)
    elif machine.nvidia_driver:
        text = "is built for CPUs only, but this machine has a driver for NVIDIA GPUs"
        yield Hint(level=WARNING, about="torch", text=text, cure="install a CUDA build, see https://pytorch.org")


def _threads(report: Report) -> Iterator[Hint]:
    machine = report.surroundings.machine
    if machine.torch_threads is not None and machine.torch_threads > machine.cores:
        text = f"uses {machine.torch_threads} threads on {machine.cores} cores, which slows everything down"
        yield Hint(level=WARNING, about="torch", text=text, cure=f"set OMP_NUM_THREADS={machine.cores}")


def _memory(report: Report) -> Iterator[Hint]:
    for memory in report.memory_after:
        if memory.free < _SCARCE * memory.total:
            name = "this machine" if memory.device == "cpu" else memory.device
            when = "with all members loaded, " if any(member.description for member in report.members) else ""
            yield Hint(
                level=WARNING,
                about=memory.device,
                text=f"{when}{memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB of {name} are free; prompts and "
                "answers of running requests share half of it",
                cure="end other programs, or load smaller or quantized models",
            )


def _results(report: Report) -> Iterator[Hint]:
    if not report.surroundings.storage.writable:
        text = f"{report.surroundings.storage.results_folder} is not writable, so every start repeats the same work"
        yield Hint(level=WARNING, about="results", text=text, cure="set HF_HOME to a folder that you may write")


def _unequal(report: Report) -> Iterator[Hint]:
    sizes = {member.name: member.parameters for member in report.members if member.parameters}
    if len(sizes) < 2:
        return
    large, small = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
    if (ratio := sizes[large] / sizes[small]) >= _UNEQUAL:
        text = f"{large!r} has {ratio:.0f} times the parameters of {small!r}; the weaker member may spoil answers"
        cure = f"compare the ensemble with {large!r} alone, raise its weight, or choose members of similar strength"
        yield Hint(level=WARNING, about="members", text=text, cure=cure)


def _together(report: Report) -> Iterator[Hint]:
    facts = report.together
    if facts.error:
        yield Hint(level=PROBLEM, about="ensemble", text=facts.error, cure=facts.error_hint or "change the options")


def _error(member: MemberFacts, report: Report) -> Iterator[Hint]:
    if member.error:
        yield Hint(level=PROBLEM, about=member.name, text=member.error, cure=member.error_hint or "check its options")


def _missing(member: MemberFacts, report: Report) -> Iterator[Hint]:
    commands = {package.name: package.install for package in report.surroundings.packages}
    for name in member.missing:
        cure = commands.get(name, f"pip install {name}")
        if not member.error or cure not in (member.error_hint or ""):  # the error of loading may say the same
            text = f"{member.model!r} needs the package {name}, which is missing"
            yield Hint(level=PROBLEM, about=member.name, text=text, cure=cure)


def _offline(member: MemberFacts, report: Report) -> Iterator[Hint]:
    if member.on_disk is not False or member.description or member.error:
        return
    if report.surroundings.storage.offline:
        text = f"the weights of {member.model!r} are not on disk, and downloads are switched off (HF_HUB_OFFLINE)"
        yield Hint(level=PROBLEM, about=member.name, text=text, cure="unset HF_HUB_OFFLINE, or give a folder on disk")
    elif not report.loaded:
        text = f"the weights of {member.model!r} are not on disk, so loading will download them"
        cure = "run this command without --no-load to download and test them"
        yield Hint(level=NOTE, about=member.name, text=text, cure=cure)


def _template(member: MemberFacts, report: Report) -> Iterator[Hint]:
    if member.chat_template is False:
        text = "has no chat template, so it continues plain prompts but takes no messages and no tools"
        cure = "give an instruction-tuned model, or set chat_template of the member"
        yield Hint(level=WARNING, about=member.name, text=text, cure=cure)
    elif member.shows_tools is False:
        text = "its chat template shows no tools, so a system message will describe them, which works less well"
        cure = "for agents, choose members whose templates show tools; otherwise ignore it"
        yield Hint(level=NOTE, about=member.name, text=text, cure=cure)


def _store(member: MemberFacts, report: Report) -> Iterator[Hint]:
    store, _, why = str(member.description.get("cache", "")).partition(" (")
    kind = re.split(r"\W", store)[0]
    if kind in _SLOWER and not why.startswith("as configured"):
        text = f"uses the KV store {store!r}, {_SLOWER[kind]}: {why.removesuffix(')')}"
        cure = "leave attn_implementation at its default; if it is, the architecture is the cause"
        if member.description.get("dtype") in ("float16", "bfloat16"):
            cure = 'try dtype="float32"; ' + cure
        yield Hint(level=WARNING if kind == "prefill" else NOTE, about=member.name, text=text, cure=cure)


def _precision(member: MemberFacts, report: Report) -> Iterator[Hint]:
    dtype, device = member.description.get("dtype"), str(member.description.get("device", ""))
    machine = report.surroundings.machine
    gpus = {gpu.device: gpu for gpu in machine.gpus}
    if dtype == "float16" and device.startswith("cpu"):
        text = "runs in float16 on a CPU, which is slow there and can overflow"
        yield Hint(level=WARNING, about=member.name, text=text, cure='set dtype="float32" or dtype="bfloat16"')
    native = gpus[device].bfloat16 if device in gpus else machine.cpu_bfloat16
    if dtype == "bfloat16" and native is False:
        other = "float16" if device in gpus else "float32"
        text = f"runs in bfloat16, which {device} only emulates, so it is slow"
        cure = f'set dtype="{other}"' + (" if there is memory for it" if other == "float32" else "")
        yield Hint(level=WARNING, about=member.name, text=text, cure=cure)


def _room(member: MemberFacts, report: Report) -> Iterator[Hint]:
    room, window = member.description.get("max_kv_tokens"), member.context_window
    if room is not None and window is not None and room < window:
        text = f"its KV memory holds {room:,} tokens, its context window is {window:,}: long prompts will be refused"
        cure = "free memory on the device, raise max_kv_tokens, or set context_window to what you need"
        yield Hint(level=WARNING, about=member.name, text=text, cure=cure)


def _misses(report: Report, name: str) -> bool:
    return any(package.name == name and package.state == MISSING for package in report.surroundings.packages)


_SLOWER = {
    "prefill": "the slowest one, which reads every proposal again",
    "fork": "which copies the cache for every branch",
}
_SURROUNDINGS: tuple[Callable[[Report], Iterator[Hint]], ...] = (_packages, _torch, _gpu_build, _threads, _results)
_ENSEMBLE: tuple[Callable[[Report], Iterator[Hint]], ...] = (_together, _memory, _unequal)
_MEMBER: tuple[Callable[[MemberFacts, Report], Iterator[Hint]], ...] = (
    *(_error, _missing, _offline, _template, _store, _precision, _room),
)
