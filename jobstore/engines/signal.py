"""A counter that tasks of one event loop can wait on, so that nothing is missed between a look and a sleep."""

from __future__ import annotations

import asyncio
import contextlib


class Signal:
    """Counts notifications; a waiter names the count that it has seen."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting = 0
        """How many wait now."""
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Count one more and wake everyone."""
        self.count += 1
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, since: int, timeout: float | None = None) -> int:
        """Return the count as soon as it differs from `since`, or `timeout` seconds have passed."""
        self.waiting += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._differs(since)
        finally:
            self.waiting -= 1
        return self.count

    async def _differs(self, since: int) -> None:
        while self.count == since:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
