"""Verdicts of self-tests, kept on disk: a model that has been tested once on this hardware is not tested again.

The key of a verdict has everything that can change it: the model's code, config, dtype and weights (their names and
shapes, and a sample of their values), the hardware, the options of the store, and the versions of all packages.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from adafuse_core import disk_cache, engine
from adafuse_core.engine.forward import Model
from adafuse_core.engine.store_choice import Options
from adafuse_core.engine.verdict import Verdict

_KIND = "selftest"
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "torchao", "bitsandbytes", "compressed_tensors", "optimum")
_PATHS = ("_name_or_path", "name_or_path")  # of a config: where a model lies does not change it
_SAMPLED, _VALUES = 24, 4  # tensors, and values of each


def read_verdict(facts: dict[str, Any]) -> tuple[Verdict, str] | None:
    """The verdict for these facts, and the day of its test; None if there is none."""
    entry = disk_cache.read_json(_KIND, facts)
    try:
        return None if entry is None else (Verdict.from_dict(entry["verdict"]), str(entry["tested"]))
    except (KeyError, TypeError, AttributeError):  # damaged, or of another version
        return None


def keep_verdict(facts: dict[str, Any], verdict: Verdict) -> None:
    """Keep a verdict, unless it depends on the memory that was free."""
    if not any("OutOfMemory" in text for text in (*verdict.problems, verdict.limits)):
        tested = datetime.now(UTC).date().isoformat()
        disk_cache.write_json(_KIND, facts, {"tested": tested, "verdict": verdict.to_dict()})


def facts_of(model: Model, options: Options) -> dict[str, Any] | None:
    """Everything that a verdict depends on, as JSON values; None if it can't be told."""
    module = model.module
    try:
        return {
            "model": f"{type(module).__module__}.{type(module).__qualname__}",
            "code": _digest(*(_source(kind) for kind in sorted({type(each) for each in module.modules()}, key=str))),
            "config": _digest(json.dumps(_config(module.config), sort_keys=True, default=str)),
            "weights": _digest(*_weights(module)),
            "options": asdict(options),
            "attention": module.config._attn_implementation,
            "hardware": _hardware(model.device),
            # Packages that no code has imported don't matter.
            "versions": disk_cache.versions(*(name for name in _PACKAGES if name in sys.modules)),
            "engine": _digest(*(path.read_text("utf-8") for path in sorted(Path(engine.__path__[0]).glob("*.py")))),
        }
    except (OSError, RuntimeError, TypeError, NotImplementedError):  # such as weights that can't be sampled
        return None


def _source(kind: type) -> str:
    """The code of a module's class, unless it belongs to a package whose version is known."""
    if kind.__module__.split(".")[0] in _PACKAGES:
        return f"{kind.__module__}.{kind.__qualname__}"
    file = inspect.getsourcefile(kind)
    if file is None:
        raise TypeError(f"{kind} has no source file")
    return "\n".join(path.read_text("utf-8") for path in sorted(Path(file).parent.glob("*.py")))


def _config(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _PATHS}


def _weights(module: torch.nn.Module) -> list[str]:
    """Name, dtype, device and shape of each tensor, and values of some of them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    described = [
        f"{name} {type(tensor).__name__} {tensor.dtype} {tensor.device} {tuple(tensor.shape)}"
        for name, tensor in tensors
    ]
    with torch.inference_mode():
        sampled = [tensor for _, tensor in tensors[:: max(1, len(tensors) // _SAMPLED)] if tensor.device.type != "meta"]
        return [*described, *(str(_sample(tensor)) for tensor in sampled)]


def _sample(tensor: torch.Tensor) -> list[float]:
    flat = tensor.detach().reshape(-1)
    step = max(1, len(flat) // _VALUES)
    return [float(flat[index]) for index in range(0, len(flat), step)[:_VALUES]]


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
