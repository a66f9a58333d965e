"""Turns of the two kinds of requests to one server: drafts, and reads of given tokens.

If vLLM computes both kinds in one step, drafts lose their likeliest tokens: its sampler then gathers given tokens only,
for all rows (seen in version 0.32 with the first model runner). Requests of one kind run together.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adafuse_core.forks import renew_after_fork

_POLL_SECONDS = 0.05  # between two checks whether the request was cancelled


class ReadKinds:
    """The requests of this process to one server. Thread-safe."""

    def __init__(self) -> None:
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Forget the requests of the parent."""
        self._changed = threading.Condition()
        self._kind: str | None = None  # of the requests that run, or ran last
        self._running = 0
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def turn(self, kind: str, raise_if_cancelled: Callable[[], None]) -> Iterator[None]:
        """Wait until no request of another kind runs, and keep others waiting meanwhile."""
        with self._changed:
            self._wait(kind, raise_if_cancelled)
            self._kind = kind
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _wait(self, kind: str, raise_if_cancelled: Callable[[], None]) -> None:
        self._waiting[kind] += 1
        try:
            while not self._may_run(kind):
                self._changed.wait(_POLL_SECONDS)
                raise_if_cancelled()
        finally:
            self._waiting[kind] -= 1
            self._changed.notify_all()

    def _may_run(self, kind: str) -> bool:
        """Whether it is this kind's turn. A kind whose turn it is lets others go first that wait already."""
        others = self._waiting.total() - self._waiting[kind]
        return not others if self._kind == kind else not self._running
