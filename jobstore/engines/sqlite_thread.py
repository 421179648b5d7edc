"""A connection on a thread of its own, entered in one hop: the one place that builds on aiosqlite's inside.

aiosqlite hops to the thread for each statement and again for each fetch; a transaction of several statements
would take several hops, and other tasks' statements would come between them. Here a whole function runs in one.
Its queue of pairs (future, function) is used directly, because its coroutines can be cancelled while the function
runs, and then nobody learns how it ended. A test pins the parts that this stands on.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from jobstore.aio import run_for

T = TypeVar("T")
P = ParamSpec("P")


class ThreadConnection(aiosqlite.Connection):
    """An aiosqlite connection that runs whole functions on its thread, and whose thread never holds up the exit."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        self._opened: list[sqlite3.Connection] = []  # filled and emptied on the thread alone
        super().__init__(partial(_open, connector, self._opened), iter_chunk_size=64)
        self._thread.daemon = True

    def __del__(self) -> None:
        """End the thread. The store itself warns of a forgotten close."""
        if self._running and self._thread.is_alive():
            self._end()

    async def connect(self) -> None:
        """Start the thread and connect on it. If that fails or is cancelled, nothing is left behind."""
        self._thread.start()
        try:
            self._connection = await self._put(self._connector)
        except BaseException:
            self._end()
            raise

    async def disconnect(self) -> None:
        """Close the connection after what was submitted before, and end the thread. Doing it twice is fine."""
        if self._running:
            closed = self._put(partial(_close, self._opened))
            self._end()
            await asyncio.shield(closed)

    def submit(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]:
        """Run a function with the connection on its thread.

        Returns:
            A future of the running event loop, which may be another than the one that opened the connection.
            Cancelling it does not stop the function.
        """
        return self._put(partial(function, self._conn, *args, **kwargs))

    def _put(self, task: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._tx.put_nowait((None, partial(run_for, loop, future, task)))
        return future

    def _end(self) -> None:
        self._running = False
        self._connection = None
        self._tx.put_nowait((None, partial(_close, self._opened)))
        self._tx.put_nowait((None, _stop))


def _open(connector: Callable[[], sqlite3.Connection], opened: list[sqlite3.Connection]) -> sqlite3.Connection:
    opened.append(connector())
    return opened[0]


def _close(opened: list[sqlite3.Connection]) -> None:
    while opened:
        opened.pop().close()


def _stop() -> object:
    return _STOP_RUNNING_SENTINEL
