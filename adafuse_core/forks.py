"""What happens to locks, threads and models when the process is forked.

A forked child inherits the objects of its parent, but of the threads only the one that forked. A lock that another
thread held then stays locked, and a pool of threads waits for ever. So whatever holds locks or threads registers here
and makes new ones in the child. The fork itself waits until no model runs a pass: the libraries beneath have locks of
their own.

Beside the registry of models the only state of the process.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakSet

MOST_SECONDS = 10.0  # that a fork waits for a pass: then the thread that forks may be the one that runs it


class Renewable(Protocol):
    """Holds locks, threads or requests."""

    def after_fork(self) -> None:
        """Make new locks and threads, and forget the parent's requests. Called in a child before all else runs."""


_renewables: WeakSet[Renewable] = WeakSet()
_functions: list[Callable[[], None]] = []
_passes: WeakSet[PassLock] = WeakSet()


class PassLock:
    """Held around a pass of a model; a fork waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = False  # by a fork that is about to happen
        _passes.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Wait for the pass that runs, and let none begin."""
        self._kept = self._lock.acquire(timeout=MOST_SECONDS)

    def in_parent(self) -> None:
        """Let passes begin again."""
        if self._kept:
            self._kept = False
            self._lock.release()

    def in_child(self) -> None:
        """Nobody runs a pass in the child yet."""
        self._lock, self._kept = threading.Lock(), False


def renew_after_fork(thing: Renewable) -> None:
    """Have `after_fork` of an object called in every child; the object is not kept alive by that."""
    _renewables.add(thing)


def call_after_fork(renew: Callable[[], None]) -> None:
    """Have a function of a module called in every child."""
    _functions.append(renew)


def _before() -> None:
    for lock in list(_passes):
        lock.before_fork()


def _in_parent() -> None:
    for lock in list(_passes):
        lock.in_parent()


def _in_child() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # OpenMP's threads did not survive, and a child that asks for them waits for ever
    for lock in list(_passes):
        lock.in_child()
    for thing in list(_renewables):
        thing.after_fork()
    for renew in _functions:
        renew()
    _renew_cached_properties()


def _renew_cached_properties() -> None:
    """Up to Python 3.11 each `cached_property` has a lock, which another thread may have held."""
    modules = [module for name, module in sys.modules.items() if name.startswith("adafuse_")]
    classes = [found for module in modules for found in vars(module).values() if isinstance(found, type)]
    for attribute in [attribute for found in classes for attribute in vars(found).values()]:
        if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
            attribute.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # systems without forks lack it
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
