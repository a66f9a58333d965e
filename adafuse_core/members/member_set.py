"""The members of an ensemble, loaded on first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from adafuse_core.backends import opener
from adafuse_core.forks import renew_after_fork
from adafuse_core.member_config import MemberConfig
from adafuse_core.members import progress_bars, registry
from adafuse_core.members.base import Member, PromptReader
from adafuse_core.members.context_windows import declared_window


class MemberSet:
    """Loads members from the registry on first use and releases them. Thread-safe.

    Args:
        configs: One config per member.
        ready_made: Member objects to use in place of the configs, if any.
        check: Raises an error if the members lack what the strategy needs.
    """

    def __init__(
        self,
        configs: Sequence[MemberConfig],
        ready_made: tuple[Member, ...] | None,
        check: Callable[[Sequence[Member]], None],
    ) -> None:
        self._configs = configs
        self._ready_made = ready_made
        self._check = check
        self.loaded = ready_made  # None before the first use
        self.after_fork()
        renew_after_fork(self)
        if ready_made is not None:
            check(ready_made)

    def load(self, *, progress: bool = False) -> tuple[Member, ...]:
        """The members; the first call loads them, with progress bars on request."""
        with self._lock, progress_bars.shown(progress):
            if self.loaded is None:
                try:
                    members = self._acquire()
                    self._check(members)
                    self.loaded = members
                except BaseException:
                    self._release()
                    raise
            return self.loaded

    @property
    def prompt_readers(self) -> Sequence[PromptReader]:
        """Tokenizer and chat template of each member. No weights are loaded."""
        if self.loaded is None:
            return [registry.encoder(config) for config in self._configs]
        return [member.prompt_reader for member in self.loaded]

    @property
    def context_window(self) -> int | None:
        """Smallest context window of the members; None if unbounded. No weights are loaded."""
        loaded = self.loaded
        windows = map(declared_window, self._configs) if loaded is None else (m.context_window for m in loaded)
        return min((window for window in windows if window is not None), default=None)

    def close(self) -> None:
        """Release the models that were loaded."""
        with self._lock:
            loaded, self.loaded = self.loaded, self._ready_made
            if loaded is not None and self._ready_made is None:
                self._release()

    def after_fork(self) -> None:
        """Replace the lock in a forked child, where a thread of the parent may never release the old one."""
        self._lock = threading.Lock()

    def _acquire(self) -> tuple[Member, ...]:
        """Load the members side by side: the tokenizer of one while the weights of another are read and tested.

        If several fail, the error is that of the first one.
        """
        for config in self._configs:
            opener(config)  # imports the backends on this thread, and refuses wrong options before any model is loaded
        with ThreadPoolExecutor(len(self._configs), thread_name_prefix="adafuse-load") as pool:
            loads = [pool.submit(registry.acquire, config, self) for config in self._configs]
        return tuple(load.result() for load in loads)

    def _release(self) -> None:
        for config in self._configs:
            registry.release(config, self)
