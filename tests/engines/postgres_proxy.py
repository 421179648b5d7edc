"""A proxy in front of a PostgreSQL server that cuts a client's connection at a chosen statement."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict

When = Literal["before", "during", "after", "ended"]
"""Before the statement reaches the server; as soon as it was sent on; once the server has answered it; or with the
answer, and with the server's word that an administrator ends the session in place of that it is ready for more."""

KEY = b"K\0\0\0\14"
"""What the server's word begins with that tells the number of its process."""

READY = b"Z\0\0\0\5"
"""What every answer ends with, but for one letter."""

COMMIT = b"COMMIT\0"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Passes everything on, but for the cuts that it was told to make."""

    def __init__(self, target: str) -> None:
        parameters = conninfo_to_dict(target)
        self._host = str(parameters.get("host") or "localhost")
        self._port = int(str(parameters.get("port") or 5432))
        self._path = f"{quote(str(parameters.get('user') or 'postgres'))}@127.0.0.1"
        self._database = str(parameters["dbname"])
        self._cuts: list[tuple[bytes, When]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: list[asyncio.StreamWriter] = []
        self.url = ""
        self.refuses = False
        self.refused = 0
        self.keeps_servers = False
        """Whether the server hears nothing of a cut: its side stays open, as if the client's host had vanished."""
        self.pools = False
        """Whether it passes for a pooler: it tells another number than the server's process has."""
        self.hides = b""
        """What of the client's words it keeps to itself, as poolers do with options."""

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def cut(self, text: bytes, *when: When) -> None:
        """Cut the connections on which a text is sent next, one after the other."""
        self._cuts += [(text, moment) for moment in when]

    def forget_cuts(self) -> None:
        """Cut no connection any more."""
        self._cuts.clear()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._path}:{port}/{self._database}?sslmode=disable"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for kept in self._kept:
                kept.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuses:
            self.refused += 1
            writer.close()
            return
        try:
            from_server, to_server = await self._connect()
        except OSError:
            writer.close()
            return
        held_back: asyncio.Future[When] = asyncio.get_running_loop().create_future()
        pumps = [
            asyncio.ensure_future(self._send_on(reader, to_server, held_back)),
            asyncio.ensure_future(self._answer(from_server, writer, held_back)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if held_back.done():
                await pumps[1]
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.close()
            if self.keeps_servers:
                self._kept.append(to_server)
            else:
                to_server.close()

    async def _connect(self) -> Streams:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    async def _send_on(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, cut: asyncio.Future[When]
    ) -> None:
        """Send on what the client says, until it ends or is to be cut."""
        seen = b""
        while data := await client.read(65536):
            seen = seen[-100:] + data
            when = self._cuts.pop(0)[1] if self._cuts and self._cuts[0][0] in seen else None
            if when == "before":
                return
            if when in {"after", "ended"}:
                cut.set_result(when)
            server.write(data.replace(self.hides, b" " * len(self.hides)) if self.hides else data)
            await server.drain()
            if when is not None:
                return

    async def _answer(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, cut: asyncio.Future[When]
    ) -> None:
        """Send back what the server says, until it ends or the connection is to be cut instead."""
        greeted = not self.pools
        with contextlib.suppress(ConnectionError):
            while data := await server.read(65536):
                if cut.done():
                    if cut.result() == "ended":
                        client.write(data[: data.rindex(READY)] + _ending())
                        await client.drain()
                    return
                if not greeted and (at := data.find(KEY)) >= 0:
                    greeted, data = True, data[: at + len(KEY)] + b"\0\0\0\1" + data[at + len(KEY) + 4 :]
                client.write(data)


def _ending() -> bytes:
    fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    return b"E" + struct.pack("!I", len(fields) + 4) + fields
