"""Memory and CPU time of members that share a base model.

    python benchmarks/adapters.py --model small:aspen --json PATH

A model and two random LoRA adapters of rank 8 for all its linear layers answer together, once from one folder (their
weights are shared) and once from three copies of the folder (three models in memory). Texts must be equal, and in
float64 also equal to the greedy texts of peft for each adapter alone. Memory is the growth of the process's resident
memory and the bytes of all distinct tensors; CPU time is the median of alternating runs of both ensembles.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
from adafuse_core import Ensemble, MemberConfig
from adafuse_core.members.model_files import source

PROMPTS = ("The capital of France is", "A short list of animals:", "Water boils at")
RANK = 8


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default="small:aspen", help="Model whose adapters are made.")
    parser.add_argument("--dtype", default="float32", help="Data type of the weights for memory and CPU time.")
    args = parser.parse_args()
    result = common.prepare(args)
    tokens, repeats = (6, 1) if args.quick else (24, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copies = [Path(shutil.copytree(source(args.model), folder / f"copy{number}")) for number in range(3)]
        adapters = [save_adapter(copies[0], folder / f"adapter{seed}", seed) for seed in range(2)]
        shared, apart = members(copies[:1] * 3, adapters), members(copies, adapters)
        result |= {"model": args.model, "dtype": args.dtype, "memory": memory(shared, apart[:1], args.dtype)}
        result |= {"exact": exactness(shared, copies[0], adapters, tokens)}
        result |= {"cpu": cpu_seconds(shared, apart, args.dtype, tokens, repeats)}
    show(result)
    common.finish(result, args.json)


def save_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A LoRA adapter whose weights are all random."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=RANK, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), lora).save_pretrained(folder)
    return folder


def members(bases: list[Path], adapters: list[Path]) -> list[dict[str, Any]]:
    """The base model alone, and with each adapter."""
    given = zip(bases, [None, *map(str, adapters)], ("base", "one", "two"), strict=True)
    return [{"model": str(base), "adapter": adapter, "name": name} for base, adapter, name in given]


def ensemble(configs: list[dict[str, Any]], dtype: str) -> Ensemble:
    return Ensemble(members=[MemberConfig(**config, dtype=dtype) for config in configs]).load()


def memory(shared: list[dict[str, Any]], alone: list[dict[str, Any]], dtype: str) -> dict[str, float]:
    """Mebibytes of one model, and of one model with two adapters, in this process."""
    with ensemble(alone, dtype) as warm:  # libraries are loaded, and buffers allocated
        warm.generate(PROMPTS[0], max_new_tokens=4)
    del warm
    gc.collect()
    before = resident()
    figures = {}
    with ensemble(shared[:1], dtype) as one:
        figures |= {"one_resident": resident() - before, "one_tensors": tensor_bytes(one)}
        with ensemble(shared, dtype) as three:
            figures |= {"three_resident": resident() - before, "three_tensors": tensor_bytes(three)}
    adapters = figures["three_tensors"] - figures["one_tensors"]
    return {name: value / 2**20 for name, value in {**figures, "adapters": adapters}.items()}


def resident() -> int:
    """Bytes of the process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def tensor_bytes(ensemble: Ensemble) -> int:
    """Bytes of all distinct parameters and buffers."""
    sizes = {}
    for member in ensemble.members:
        module = member.backend.model.module
        for tensor in (*module.parameters(), *module.buffers()):
            sizes[tensor.data_ptr()] = tensor.nbytes
    return sum(sizes.values())


def exactness(configs: list[dict[str, Any]], base: Path, adapters: list[Path], tokens: int) -> bool:
    """Whether each member alone, while all are loaded, writes the greedy text of peft, in float64."""
    texts = []
    with ensemble(configs, "float64"):
        for config in configs:
            with Ensemble(members=[MemberConfig(**config, dtype="float64")], strategy="single") as alone:
                texts.append([alone.generate(prompt, max_new_tokens=tokens).text for prompt in PROMPTS])
    if len({tuple(each) for each in texts}) != len(configs):
        raise SystemExit("the adapters change no text")
    return texts == [greedy(base, adapter, tokens) for adapter in (None, *adapters)]


def greedy(base: Path, adapter: Path | None, tokens: int) -> list[str]:
    """Greedy texts of transformers, with an adapter by peft."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
    texts = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.eval().generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        texts.append(tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def cpu_seconds(
    shared: list[dict[str, Any]], apart: list[dict[str, Any]], dtype: str, tokens: int, repeats: int
) -> dict[str, float]:
    """Median CPU seconds for all prompts, of members that share weights and of three models."""
    seconds: dict[str, list[float]] = {"shared": [], "apart": []}
    texts = {}
    with ensemble(shared, dtype) as one, ensemble(apart, dtype) as three:
        for _ in range(repeats):
            for name, each in (("shared", one), ("apart", three)):
                start = time.process_time()
                texts[name] = [each.generate(prompt, max_new_tokens=tokens).text for prompt in PROMPTS]
                seconds[name].append(time.process_time() - start)
    if texts["shared"] != texts["apart"]:
        raise SystemExit("shared weights change the text")
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(result: dict[str, Any]) -> None:
    mib, cpu = result["memory"], result["cpu"]
    print(f"{result['model']}, {result['dtype']}")
    for kind in ("tensors", "resident"):
        one, three = mib[f"one_{kind}"], mib[f"three_{kind}"]
        bound = one + mib["adapters"]
        print(f"{kind:>9}: one model {one:.1f} MiB, with two adapters {three:.1f} MiB ({three / bound:.3f} of the sum)")
    print(f" adapters: {mib['adapters']:.1f} MiB")
    print(f"  texts equal to peft's in float64: {result['exact']}")
    ratio = cpu["shared"] / cpu["apart"]
    print(f"  CPU seconds: shared {cpu['shared']:.2f}, three models {cpu['apart']:.2f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
