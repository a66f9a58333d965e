"""Check the installed distributions: import every module, and let the small models answer once."""

import hashlib
import importlib
import pkgutil
from pathlib import Path

import adafuse_small_models
import langchain_adafuse
import llama_index.llms.adafuse

import adafuse_core
import adafuse_integrations

for line in Path("SHA256SUMS").read_text(encoding="utf-8").splitlines():
    digest, name = line.split()
    assert hashlib.sha256(Path(name).read_bytes()).hexdigest() == digest, name
    print(f"{name}: checksum is right")

for thin in (langchain_adafuse, llama_index.llms.adafuse, adafuse_small_models):
    (folder,) = thin.__path__
    assert Path(folder).is_relative_to(Path("installed").resolve()), f"{thin.__name__} comes from {folder}"

for package in (adafuse_core, adafuse_integrations):
    (folder,) = package.__path__
    assert Path(folder).parent == Path("installed").resolve(), f"{package.__name__} comes from {folder}"
    modules = [module.name for module in pkgutil.walk_packages([folder], f"{package.__name__}.")]
    for module in modules:
        importlib.import_module(module)
    print(f"{package.__name__}: {len(modules)} modules imported")

with adafuse_core.Ensemble() as ensemble:
    answer = ensemble.generate([{"role": "user", "content": "Who wrote Faust?"}], max_new_tokens=8)
assert answer.text, "the small models answer nothing"
print(f"answer: {answer.text}")
