"""Import every module of the installed wheel, and let its small models answer once."""

import importlib
import pkgutil
from pathlib import Path

import adafuse_core
import adafuse_integrations

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
