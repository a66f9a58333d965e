"""Fork safety: new locks and thread pools in forked child processes.

A forked child has only the thread that called `fork`. A lock that another thread of the parent held stays locked
forever, and a thread pool has no threads. Objects with locks or threads therefore register here and replace them in
the child. The fork itself waits for running forward passes, because torch and the tokenizers have internal locks.

Apart from caches and locks, this module and the registry of models hold the only process-wide state.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakSet

logger = logging.getLogger(__name__)
MOST_SECONDS = 10.0  # a fork waits no longer for a forward pass, which the forking thread itself may be running


class Renewable(Protocol):
    """An object with locks, threads or pending requests."""

    def after_fork(self) -> None:
        """Replace locks and threads, and drop the parent's requests. Called first thing in a child process."""


_renewables: WeakSet[Renewable] = WeakSet()
_functions: list[Callable[[], None]] = []
_pass_locks: WeakSet[PassLock] = WeakSet()


class PassLock:
    """A lock to hold during a forward pass; a fork waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forking = False  # whether a fork holds the lock
        _pass_locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Wait for the running pass, and block further ones."""
        self._forking = self._lock.acquire(timeout=MOST_SECONDS)

    def in_parent(self) -> None:
        """Allow passes again."""
        if self._forking:
            self._forking = False
            self._lock.release()

    def in_child(self) -> None:
        """Replace the lock; no pass is running in the child."""
        self._lock, self._forking = threading.Lock(), False


def renew_after_fork(thing: Renewable) -> None:
    """Register an object for `after_fork` in every child process. Keeps only a weak reference."""
    _renewables.add(thing)


def call_after_fork(renew: Callable[[], None]) -> None:
    """Register a function to be called in every child process."""
    _functions.append(renew)


def _before() -> None:
    for lock in list(_pass_locks):
        lock.before_fork()


def _in_parent() -> None:
    for lock in list(_pass_locks):
        lock.in_parent()


def _in_child() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # OpenMP's threads don't survive the fork; waiting for them would never end
    for lock in list(_pass_locks):
        lock.in_child()
    for renew in [*(thing.after_fork for thing in list(_renewables)), *_functions, _renew_cached_properties]:
        try:
            renew()
        except Exception:  # the others must still be renewed: a lock that stays locked blocks the child forever
            logger.exception("an object could not be renewed in a forked child process")


def _renew_cached_properties() -> None:
    """Up to Python 3.11 each `cached_property` has a lock, which another thread may have held."""
    modules = [module for name, module in sys.modules.items() if name.startswith("adafuse_")]
    classes = [found for module in modules for found in vars(module).values() if isinstance(found, type)]
    for attribute in [attribute for found in classes for attribute in vars(found).values()]:
        if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
            attribute.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # missing on systems without fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
