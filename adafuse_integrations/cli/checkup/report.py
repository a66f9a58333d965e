"""The report of `adafuse doctor`: all facts, and whether the ensemble can be used."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from adafuse_core import Ensemble, EnsembleConfig
from adafuse_integrations.cli.checkup.installation import MISSING, Package, packages
from adafuse_integrations.cli.checkup.machine import Machine, Memory, machine, memory
from adafuse_integrations.cli.checkup.members import MemberFacts, Together, loaded, on_disk, together
from adafuse_integrations.cli.checkup.storage import Storage, storage


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What does not depend on the members."""

    packages: tuple[Package, ...]
    machine: Machine
    memory: tuple[Memory, ...]
    storage: Storage


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that `adafuse doctor` finds out.

    Args:
        surroundings: What is installed, the machine and its folders.
        loaded: Whether the members were to be loaded.
        members: The members, also those that can't be loaded.
        together: The members as an ensemble.
        memory_after: The memory when the members are loaded.
    """

    surroundings: Surroundings
    loaded: bool
    members: tuple[MemberFacts, ...]
    together: Together
    memory_after: tuple[Memory, ...]


def surroundings() -> Surroundings:
    """Look at packages, machine and folders."""
    return Surroundings(packages=packages(), machine=machine(), memory=memory(), storage=storage())


def report(config: EnsembleConfig, around: Surroundings, *, load: bool, progress: bool = False) -> Report:
    """Look at the members.

    Args:
        config: The ensemble.
        around: What was found before.
        load: Whether to load the members. They are in memory together, and freed at the end.
        progress: Whether to show progress bars on standard error.
    """
    broken = around.machine.torch_error or any(each.required and each.state == MISSING for each in around.packages)
    with contextlib.ExitStack() as stack:
        if load and not broken:
            singles = [Ensemble(members=[each], member_defaults=config.member_defaults) for each in config.members]
            members = tuple(loaded(stack.enter_context(single), progress=progress) for single in singles)
        else:
            members = tuple(map(on_disk, config.members))
        return Report(
            surroundings=around,
            loaded=load,
            members=members,
            together=together(config, members),
            memory_after=memory(),
        )
