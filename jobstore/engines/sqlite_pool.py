"""A bounded pool of read-only connections, opened as they are needed."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from jobstore.engines.base import PoolStats
from jobstore.engines.sqlite_thread import ThreadConnection
from jobstore.errors import PoolTimeout, StoreClosed

T = TypeVar("T")


class ReaderPool:
    """Reading connections, at most `size` of them.

    Args:
        connector: Opens one, on its own thread.
        size: How many there may be.
        timeout: How long to wait for one, in seconds.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection], size: int, timeout: float) -> None:
        self._connector = connector
        self._size = size
        self._timeout = timeout
        self._free: list[ThreadConnection] = []
        self._all: set[ThreadConnection] = set()
        self._places = size  # connections that may still be opened
        self._waiters: deque[asyncio.Future[ThreadConnection | None]] = deque()
        self._timeouts = self._reads = 0
        self._closed = False

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function with a connection of the pool, on that connection's thread.

        Raises:
            PoolTimeout: None became free in time.
            StoreClosed: The pool was closed meanwhile.
        """
        connection = await self._acquire_open()
        future = connection.submit(function)
        # Also when the caller is cancelled: the thread is busy until the function has ended.
        future.add_done_callback(lambda _: self._hand_on(connection))
        return await asyncio.shield(future)

    @asynccontextmanager
    async def hold(self, last: Callable[[sqlite3.Connection], None]) -> AsyncIterator[ThreadConnection]:
        """Hold a connection for several functions; at the end, `last` runs on it.

        Raises:
            PoolTimeout: None became free in time.
            StoreClosed: The pool was closed meanwhile.
        """
        connection = await self._acquire_open()
        try:
            yield connection
        finally:
            if self._closed:  # and with it the connection
                self._hand_on(connection)
            else:
                connection.submit(last).add_done_callback(lambda _: self._hand_on(connection))

    async def close(self) -> None:
        """Close the connections after what runs on them; who waits for one is refused."""
        self._closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(StoreClosed("the store was closed while this waited to read"))
        for connection in list(self._all):
            await connection.disconnect()
        self._all.clear()
        self._free.clear()

    def stats(self) -> PoolStats:
        """Return the figures of now."""
        return PoolStats(
            size=self._size,
            open=len(self._all),
            in_use=len(self._all) - len(self._free),
            waiting=len(self._waiters),
            timeouts=self._timeouts,
            reads=self._reads,
        )

    async def _acquire_open(self) -> ThreadConnection:
        connection = await self._acquire()
        if self._closed:
            await connection.disconnect()
            raise StoreClosed("the store was closed while this waited to read")
        self._reads += 1
        return connection

    async def _acquire(self) -> ThreadConnection:
        if self._free:
            return self._free.pop()
        if self._places:
            self._places -= 1
            return await self._open()
        return await self._wait() or await self._open()

    async def _open(self) -> ThreadConnection:
        connection = ThreadConnection(self._connector)
        try:
            await connection.connect()
        except BaseException:
            self._hand_on(None)
            raise
        self._all.add(connection)
        return connection

    async def _wait(self) -> ThreadConnection | None:
        """Wait for a connection, or for the place of one that could not be opened (None)."""
        waiter: asyncio.Future[ThreadConnection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                return await waiter
        except TimeoutError:
            self._timeouts += 1
            self._take_back(waiter)
            raise PoolTimeout(self._size, time.monotonic() - started) from None
        except BaseException:
            self._take_back(waiter)
            raise

    def _take_back(self, waiter: asyncio.Future[ThreadConnection | None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            # Handed over, but the caller never saw it.
            self._hand_on(waiter.result())

    def _hand_on(self, connection: ThreadConnection | None) -> None:
        """Give a connection, or the place of one, to whoever waits longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._places += 1
        else:
            self._free.append(connection)
