"""The machine: processor, GPUs, memory, and how PyTorch is built for them."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CPU_INFO = Path("/proc/cpuinfo")
_DRIVER = Path("/proc/driver/nvidia/version")
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # bf16: Arm
_SHOWN_FLAGS = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "BF16", "sve": "SVE"}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that PyTorch can use; `bfloat16` says whether it computes in this type natively."""

    device: str
    name: str
    bfloat16: bool


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of memory of a device that are free now, and in total."""

    device: str
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What models can run on.

    Args:
        python: Version of Python.
        system: Name and version of the operating system.
        cpu: Name of the processor.
        cores: Processor cores that this process may use.
        cpu_features: Instruction sets that matter for models, as far as they are known.
        cpu_bfloat16: Whether the processor computes in bfloat16 natively; None if unknown.
        torch_build: What PyTorch is built for: `"CPU"`, or CUDA or ROCm with a version; None if it can't be imported.
        torch_threads: Threads that PyTorch uses for one operation.
        torch_error: Why PyTorch can't be imported.
        gpu_error: What PyTorch reports about GPUs that it can't use.
        gpus: GPUs that PyTorch can use.
        nvidia_driver: Whether a driver for NVIDIA GPUs is installed.
    """

    python: str
    system: str
    cpu: str
    cores: int
    cpu_features: tuple[str, ...] = ()
    cpu_bfloat16: bool | None = None
    torch_build: str | None = None
    torch_threads: int | None = None
    torch_error: str | None = None
    gpu_error: str | None = None
    gpus: tuple[Gpu, ...] = ()
    nvidia_driver: bool = False


def machine() -> Machine:
    """Look at this machine."""
    name, flags = _processor()
    features = tuple(shown for flag, shown in _SHOWN_FLAGS.items() if flag in flags)
    common: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cpu": name,
        "cores": _cores(),
        "cpu_bfloat16": bool(flags & _BFLOAT16_FLAGS) if flags else None,
        "nvidia_driver": _DRIVER.is_file() or shutil.which("nvidia-smi") is not None,
    }
    try:
        import torch
    except Exception as error:  # a damaged installation raises many types
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        return Machine(**common, cpu_features=features, torch_error=problem)
    with warnings.catch_warnings(record=True, action="always") as caught:  # such as: the driver is too old
        gpus = tuple(_gpus())
    return Machine(
        **common,
        cpu_features=(torch.backends.cpu.get_cpu_capability(), *features),
        torch_build=_build(),
        torch_threads=torch.get_num_threads(),
        gpu_error=str(caught[0].message).splitlines()[0] if caught and not gpus else None,
        gpus=gpus,
    )


def memory() -> tuple[Memory, ...]:
    """The memory of this machine and of its GPUs, now."""
    return tuple(_memory())


def _memory() -> Iterator[Memory]:
    try:
        import psutil
        import torch
    except Exception:  # `machine` reports it
        return
    found = psutil.virtual_memory()
    yield Memory(device="cpu", free=found.available, total=found.total)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        yield Memory(device=f"cuda:{index}", free=free, total=total)


def _gpus() -> Iterator[Gpu]:
    from torch import cuda

    for index in range(cuda.device_count() if cuda.is_available() else 0):
        with cuda.device(index):
            native = cuda.is_bf16_supported(including_emulation=False)
        yield Gpu(device=f"cuda:{index}", name=cuda.get_device_name(index), bfloat16=native)


def _build() -> str:
    from torch import version

    if version.hip:
        return f"ROCm {version.hip}"
    return f"CUDA {version.cuda}" if version.cuda else "CPU"


def _processor() -> tuple[str, frozenset[str]]:
    """Name and flags of the processor; no flags where the system does not tell them in a file."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = values.get("flags") or values.get("Features") or ""
    return values.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
