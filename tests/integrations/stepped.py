"""A scripted member whose steps a test permits one by one, so that no test depends on the clock."""

from __future__ import annotations

import asyncio
import threading

from adafuse_core.members.scripted import ScriptedMember

LONG = 20.0  # seconds; only a test that fails waits that long


class Stepped(ScriptedMember):
    """A member that drafts as often as it may, and then waits for more permits or for its cancelling.

    Args:
        steps: Permits to begin with; None for no bound.

    Attributes:
        running: Its prefixes that are not closed.
        most: Most of them at a time, so far.
    """

    def __init__(self, *arguments, steps=None, **options):
        super().__init__(*arguments, **options)
        self.running, self.most = set(), 0
        self._bounded, self._permits = steps is not None, threading.Semaphore(steps or 0)

    def let(self, steps):
        """Give more permits."""
        self._permits.release(steps)

    def open(self, opening):
        prefix = super().open(opening)
        draft, close = prefix.draft, prefix.close

        def permitted(*arguments, **options):
            waited = 0.0
            while self._bounded and not opening.cancel.is_set() and not self._permits.acquire(timeout=0.01):
                waited += 0.01
                assert waited < LONG, "nobody lets this member go on"
            return draft(*arguments, **options)

        def closed():
            self.running.discard(prefix)
            close()

        prefix.draft, prefix.close = permitted, closed
        self.running.add(prefix)
        self.most = max(self.most, len(self.running))
        return prefix


async def until(holds):
    """Wait for a condition without blocking the event loop."""
    async with asyncio.timeout(LONG):
        while not holds():
            await asyncio.sleep(0.001)


async def stopped(*members):
    """Wait until the members have no open prefix, so that no generation can continue."""
    await until(lambda: not any(member.running for member in members))
