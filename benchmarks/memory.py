"""Memory of a member: bytes of weights, of keys and values per token, and the peak of the process.

Each model is loaded in a process of its own, once per quantization, and continues a prompt. The peak is the largest
resident memory of that process while it loads and runs, minus that of an equal process before it loads (CPU only).
`--shape` adds figures that are calculated from the shape of a model, for GPUs and models that are not at hand.

The quantizations need `pip install "adafuse[quantized]"`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import common
import random_models
from adafuse_core import Ensemble

PROMPT = "The capital of Peru is Lima, a large city on the coast of the Pacific Ocean. " * 8
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "torchao int8": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
    },
    "bitsandbytes int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
# Bytes per weight of a layer: the values and their scales, in rows of 4,096 or blocks of 64 or 128 weights.
CALCULATED = {"bfloat16": 2.0, "int8": 1 + 4 / 4096, "int4, groups of 128": 0.5 + 2 / 128, "nf4": 0.5 + 4 / 64}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--models", nargs="+", help="names or folders (default: the small models)")
    parser.add_argument("--dtype", default="bfloat16", help="data type of the weights that are not quantized")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="quantizations")
    parser.add_argument("--shape", choices=random_models.shapes(), help="also calculate the figures of this shape")
    parser.add_argument("--only", help="for internal use: measure one model and quantization, print JSON")
    args = parser.parse_args()
    result = common.prepare(args)
    if args.only:
        print(json.dumps(_measure(args.models[0], args.dtype, args.device, METHODS[args.only])))
        return
    models = args.models or [f"small:{name}" for name in common.NAMES]
    methods = ["none", "torchao int8"] if args.quick else args.methods
    result["measured"] = [row for model in models for method in methods for row in _rows(model, method, args)]
    result["calculated"] = [*_calculated(args.shape)] if args.shape else []
    _print(result)
    common.finish(result, args.json)


def _rows(model: str, method: str, args: Any) -> Iterator[dict[str, Any]]:
    """The figures of a model and quantization, from a new process; none, with the reason, if it can't be loaded."""
    command = [sys.executable, __file__, "--models", model, "--only", method]
    command += ["--dtype", args.dtype, "--device", args.device, "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{model}, {method}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        return
    yield {"model": Path(model).name, "method": method, **json.loads(done.stdout.splitlines()[-1])}


def _measure(model: str, dtype: str, device: str, quantization: dict[str, Any]) -> dict[str, Any]:
    before = _resident_peak()
    member = {"model": model, "dtype": dtype, "device": device, "quantization_config": quantization or None}
    with Ensemble({"members": [member]}) as ensemble:
        ensemble.generate(PROMPT, max_new_tokens=8)  # some methods unpack the weights in the first pass
        backend = ensemble.members[0].backend
        module = backend.model.module
        return {
            "weights": weight_bytes(module),
            "parameters": sum(tensor.numel() for tensor in {id(t): t for t in module.parameters()}.values()),
            "kv_per_token": kv_bytes(module.config.get_text_config(), module.dtype.itemsize),
            "peak": _resident_peak() - before if device == "cpu" else torch.cuda.max_memory_allocated(device),
            "runs": ensemble.describe()["members"][0]["cache"],
        }


def weight_bytes(module: Any) -> int:
    """Bytes of all parameters and buffers, each counted once, with the scales of quantized tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [value for each in tensors for value in vars(getattr(each, "quant_state", object)).values()]
    tensors += [value for each in tensors for value in (getattr(each, "CB", None), getattr(each, "SCB", None))]
    parts = {part.data_ptr(): part.nbytes for each in tensors if torch.is_tensor(each) for part in _parts(each)}
    return sum(parts.values())


def _parts(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors that a tensor consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def kv_bytes(config: Any, itemsize: int) -> int:
    """Bytes of keys and values that a token adds, in layers that keep all tokens."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head * itemsize)


def _calculated(name: str) -> Iterator[dict[str, Any]]:
    """Embeddings and head in bfloat16, as the methods leave them; the layers by bytes per weight."""
    shape = random_models.shapes()[name]
    hidden, heads, groups = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = 2 * hidden * hidden * (1 + groups / heads)
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    ends = 2 * shape["vocab_size"] * hidden
    kv = 2 * shape["num_hidden_layers"] * groups * (hidden // heads) * 2
    for method, size in CALCULATED.items():
        yield {"shape": name, "method": method, "weights": 2 * ends + size * layers, "kv_per_token": kv}


def _resident_peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _print(result: dict[str, Any]) -> None:
    rows = [
        (r["model"], r["method"], r["weights"] / 1e6, r["kv_per_token"] / 1e3, r["peak"] / 1e6)
        for r in result["measured"]
    ]
    columns = ["model", "quantization", "weights, MB", "KV per token, kB", "peak, MB"]
    common.show("Measured: memory of one member", columns, rows)
    if result["calculated"]:
        rows = [(r["shape"], r["method"], r["weights"] / 1e9, r["kv_per_token"] / 1e3) for r in result["calculated"]]
        columns = ["shape", "quantization", "weights, GB", "KV per token, kB"]
        common.show("Calculated, not measured", columns, rows)


if __name__ == "__main__":
    main()
