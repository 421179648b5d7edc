"""Hears of other processes' commits: LISTEN on a connection of its own, and a slow poll as the safety net."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import sql

from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_pipeline import Bound, Connection, bind, to_query
from jobstore.engines.postgres_server import Server
from jobstore.errors import DatabaseError, JobStoreError

logger = logging.getLogger(__name__)

POLL_LISTENING = 5.0
"""Seconds between looks while notifications come: a lost one delays its job by no more."""
POLL_POOLED = 0.25
"""Seconds between looks behind a pooler, through which no notification comes."""
RETRY_SECONDS = 1.0

_NOTIFY = to_query("SELECT pg_notify(:channel, :payload) WHERE pg_current_xact_id_if_assigned() IS NOT NULL")


class Listener:
    """Calls back when another process may have changed something.

    Args:
        server: Where to connect.
        sender: Marks this process's own notifications, which are passed over.
        heard: Called when it may have changed something.
        heard_of_work: Called when there may be new work as well.
        look: Returns what differs once anyone has written anything.
    """

    def __init__(
        self,
        server: Server,
        sender: str,
        heard: Callable[[], None],
        heard_of_work: Callable[[], None],
        look: Callable[[], Awaitable[str]],
    ) -> None:
        self._server = server
        self._sender = sender
        self._heard = heard
        self._heard_of_work = heard_of_work
        self._look = look
        self._tasks: list[asyncio.Task[None]] = []
        self._connection: Connection | None = None

    async def start(self, channel: str, *, pooled: bool) -> None:
        """Begin to listen; from here on nothing is missed.

        Raises:
            DatabaseError: The server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        seen = await self._look()
        self._tasks.append(loop.create_task(self._poll(POLL_POOLED if pooled else POLL_LISTENING, seen)))
        if not pooled:
            self._connection = await self._connect(channel)
            self._tasks.append(loop.create_task(self._listen(channel, self._connection)))

    async def close(self) -> None:
        """Listen no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._connection is not None:
            await self._connection.close()

    def notice(self, channel: str, *, wakes: bool) -> Bound:
        """Return the statement that tells the other processes of a commit that changed anything.

        The server sends equal ones once.
        """
        return bind(_NOTIFY, {"channel": channel, "payload": f"{self._sender}:{'work' if wakes else 'change'}"})

    async def _poll(self, seconds: float, seen: str) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                last = await self._look()
            except JobStoreError:
                last = ""  # unknown: let those who wait look for themselves
            if last != seen:
                seen = last
                self._heard_of_work()

    async def _listen(self, channel: str, connection: Connection) -> None:
        while True:
            with contextlib.suppress(psycopg.Error):
                await self._hear(connection)
            logger.info("the connection that listens was lost, making it anew")
            await connection.close()
            connection = self._connection = await self._connect_again(channel)
            self._heard_of_work()  # what came meanwhile was missed

    async def _connect_again(self, channel: str) -> Connection:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(DatabaseError):
                return await self._connect(channel)

    async def _connect(self, channel: str) -> Connection:
        connection, _ = await self._server.connect()
        try:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except BaseException as error:
            await connection.close()
            if isinstance(error, psycopg.Error):
                raise translate(error) from None
            raise
        return connection

    async def _hear(self, connection: Connection) -> None:
        async for notification in connection.notifies():
            sender, _, kind = notification.payload.partition(":")
            if sender != self._sender:
                (self._heard_of_work if kind == "work" else self._heard)()
