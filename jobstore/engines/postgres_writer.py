"""Commits transactions on one connection, and finds out how they ended when the connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
from psycopg.errors import ReadOnlySqlTransaction
from uuid_utils import uuid7

from jobstore.clock import Clock
from jobstore.engines import postgres_driver as driver
from jobstore.engines.base import Request
from jobstore.engines.postgres_driver import MustBeAlone, TransactionFailed, roll_back
from jobstore.engines.postgres_errors import is_locked, is_passing, translate
from jobstore.engines.postgres_pipeline import Bound, Connection, Query, Result, bind, run_together, to_query
from jobstore.engines.postgres_schema import COUNT_STEPS, SchemaGuard, SchemaInMotion, SchemaMoved
from jobstore.engines.postgres_server import Facts, Server, settings
from jobstore.errors import (
    ConnectionLost,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DiskFailed,
    ReadOnlyDatabase,
)

BATCH_LOCK_TIMEOUT = 0.1
"""Seconds that a transaction on the shared connection waits for a row that someone else has locked."""
RETRY_SECONDS = 0.002
LOOK_SECONDS = 0.05
MAX_LOST = 5
"""Connections that one transaction may lose: more would be its own doing."""
FORGET_AFTER = 7 * 24 * 3600 * 1000
"""Milliseconds after which the mark of a writer that has gone is removed."""

_MARK = to_query("""
    INSERT INTO store_writers (writer_id, batch, seen_at)
    SELECT :writer_id, :batch, :now WHERE pg_current_xact_id_if_assigned() IS NOT NULL
    ON CONFLICT (writer_id) DO UPDATE SET batch = excluded.batch, seen_at = excluded.seen_at
""")
"""The server knows best whether a transaction has changed anything: also what a function did that a query called."""
_BEGIN = Bound(Query(driver.READ_COMMITTED, planned=False), [])
_COMMIT = Bound(Query("COMMIT", planned=False), [])
_OTHER_HOLDERS = """
    FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
    AND (classid::bigint << 32) + objid::bigint = %(lock)s AND objsubid = 1
    AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class RowLocked(Exception):
    """Someone else has locked a row for longer than the shared connection may wait."""


class Writer:
    """The connection that transactions are committed on, made anew whenever it is lost.

    Each transaction that changes anything also changes the writer's own row in `store_writers`. When the answer to a
    COMMIT is lost, that row tells whether it happened. `pg_xact_status` would not do: after a crash, the server gives
    the number of a transaction that never reached its log to another one, and tells of that (seen: "committed" for one
    that was lost). And the row is written on the way to the COMMIT, while a number is of use only once it has come
    back: one more round trip for each batch. Each transaction holds the writer's own advisory lock from its
    beginning, which shows whether the server is still at one whose connection was lost: it is waited for, or ended if
    it waits for us.

    Args:
        server: Where to connect.
        clock: The present time in milliseconds, passed to each operation as it is driven.
        durability: As of the store.
        lock_timeout: Seconds to wait for a locked row.
        patience: Seconds for which a caller waits for a lost server, and a transaction that lost against others is
            tried again.
        notice: The statement that tells other processes of a commit, by whether it may have made work.
        guard: Knows the schema that the operations were written for.
    """

    def __init__(
        self,
        server: Server,
        clock: Clock,
        durability: str,
        lock_timeout: float,
        patience: float,
        notice: Callable[[bool], Bound],
        guard: SchemaGuard,
    ) -> None:
        self.facts = Facts(pooled=False, offset=0)
        self._server = server
        self._clock = clock
        self._lock = random.getrandbits(63)
        self._settings = settings(durability=durability, lock_timeout=lock_timeout, lock=self._lock)
        self._prelude = [_BEGIN, bind(to_query(self._settings), {}), COUNT_STEPS]
        self._patience = patience
        self._notice = notice
        self._guard = guard
        self._connection: Connection | None = None
        self._id = str(uuid7())
        self._batch = 0

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseError: It is not possible; the message says why.
        """
        self._connection, self.facts = await self._server.connect()

    async def forget_gone(self) -> None:
        """Remove the marks of writers that have gone without a word."""
        connection = await self._connected(time.monotonic() + self._patience)
        before = self._clock() - FORGET_AFTER
        await connection.execute(
            "DELETE FROM store_writers WHERE writer_id IN"
            " (SELECT writer_id FROM store_writers WHERE seen_at < %(before)s FOR UPDATE SKIP LOCKED)",
            {"before": before},
        )

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None and not self._connection.closed:
            with contextlib.suppress(psycopg.Error):  # then a later writer forgets it
                await self._connection.execute("DELETE FROM store_writers WHERE writer_id = %(id)s", {"id": self._id})
            await self._connection.close()
        self._connection = None

    def abandon(self) -> None:
        """Disconnect at once, from another thread or event loop than the writer's own."""
        if self._connection is not None:
            self._connection.pgconn.finish()

    async def commit_together(self, requests: Sequence[Request]) -> bool:
        """Commit guarded requests in one transaction, or each in its own if that fails; return whether rows changed.

        Raises:
            DatabaseError: The server failed as a whole: nothing was written.
        """
        until = max(request.since for request in requests) + self._patience

        async def drive(connection: Connection) -> bool:
            now = self._clock()
            return await driver.drive_in_turns(connection, requests, now, self._prelude, self._look)

        try:
            return await self._commit(drive, until, wakes=any(request.wakes for request in requests))
        except TransactionFailed as failure:
            meaning = translate(failure.error)
            if isinstance(meaning, DiskFailed | DatabaseCorrupt | ReadOnlyDatabase):
                raise meaning from meaning.__cause__
        except MustBeAlone:
            pass
        return await self._commit_one_by_one(requests)

    def _look(self, begun: Sequence[Result]) -> None:
        _, share, count = begun
        self._guard.look(share.rows[0], count.rows[0])

    async def _commit_one_by_one(self, requests: Sequence[Request]) -> bool:
        changed = False
        away: ConnectionLost | None = None
        for request in requests:
            if away is not None:
                request.error = away  # or each would wait for the server anew
                continue
            try:
                changed |= await self.commit_alone(request)
            except RowLocked:
                request.deferred = True
            except ConnectionLost as error:
                request.error = error
                away = error if error.waited else None
        return changed

    async def commit_alone(self, request: Request) -> bool:
        """Commit one request, which gets its value or its error; return whether it changed rows.

        Raises:
            RowLocked: A row that it wants is locked by someone else.
            ConnectionLost: The server could not be reached again, or not for long enough.
        """
        request.value = request.error = None
        begin = driver.READ_COMMITTED if request.guarded else driver.SERIALIZABLE

        async def drive(connection: Connection) -> bool:
            now = self._clock()
            try:
                async with driver.pipeline(connection):
                    await connection.execute(begin)
                    share = await connection.execute(self._settings)
                    count = await connection.execute(COUNT_STEPS.query.text)
                self._guard.look(*await share.fetchall(), *await count.fetchall())
            except psycopg.Error as error:  # such as a lock that the lost connection's session still holds
                raise TransactionFailed(error) from None
            request.value, changed = await driver.drive_alone(connection, request.make_operation(now, *request.args))
            return changed or not request.guarded  # a user's own query may have called a function that writes

        started = time.monotonic()
        while True:
            try:
                return await self._commit(drive, request.since + self._patience, wakes=request.wakes)
            except TransactionFailed as failure:
                waited = time.monotonic() - started
                if is_locked(failure.error):
                    raise RowLocked from None
                if not is_passing(failure.error) or waited >= self._patience:
                    request.error = _final(failure.error, waited)
                    return False
            except (ConnectionLost, asyncio.CancelledError):
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
                request.error = RuntimeError("the operation raised it") if isinstance(error, StopIteration) else error
                return False
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret

    async def _commit(self, drive: Callable[[Connection], Awaitable[bool]], until: float, *, wakes: bool) -> bool:
        """Begin, drive and commit a transaction; return whether it changed rows. A lost server is sought `until` then.

        What drives it tells whether it may have changed anything.

        Raises:
            TransactionFailed: It was undone.
            ConnectionLost: The server could not be reached again.
            DatabaseBusy: Somebody is at the schema `until` then.
            MigrationRequired: The schema was changed since the store was opened.
            SchemaMismatch: It was changed by a newer version.
        """
        lost, began = 0, time.monotonic()
        while lost < MAX_LOST:
            connection = await self._connected(until)
            self._batch += 1
            try:
                tells = await drive(connection)
            except SchemaInMotion:
                await roll_back(connection)
                if time.monotonic() >= until:
                    raise DatabaseBusy(time.monotonic() - began) from None
                await asyncio.sleep(LOOK_SECONDS)
                continue
            except SchemaMoved as moved:
                await roll_back(connection)
                await self._guard.accept(connection, moved, self._clock())
                continue
            except BaseException as error:
                await roll_back(connection)
                if isinstance(error, asyncio.CancelledError):
                    raise
                if connection.closed or await self._was_in_its_own_way(connection, error):
                    lost += 1
                    continue  # nothing of it was committed
                if (refusal := _refusal_to_write(connection, error)) is not None:
                    await connection.close()  # the next one is made to whatever is the primary by then
                    raise refusal from refusal.__cause__
                raise
            changed = await self._end(connection, tells=tells, wakes=wakes)
            if changed is not None:
                return changed
            lost += 1
        raise ConnectionLost(f"the connection to {self._server.name} was lost {MAX_LOST} times: nothing was written")

    async def _end(self, connection: Connection, *, tells: bool, wakes: bool) -> bool | None:
        """Commit, and tell others of what was changed; return whether that was anything. None: nothing was committed.

        Not of what the server alone counts as a change: rows that were locked, for a rescue that then passed over
        them. Idle workers would wake each other without end.
        """
        try:
            notices = [self._notice(wakes)] if tells else []
            mark, *_ = await run_together(connection, [bind(_MARK, self._mark()), *notices, _COMMIT])
        except psycopg.Error as error:
            await roll_back(connection)  # which shows whether it still lives: a server that ends it says so first
            if connection.closed:
                return tells if await self._has_committed() else None
            raise TransactionFailed(error) from None
        except BaseException:  # it is not known how much of it the server was sent
            await connection.close()
            raise
        return tells and mark.rowcount > 0

    async def _was_in_its_own_way(self, connection: Connection, error: BaseException) -> bool:
        """Whether a transaction failed for a lost one that has begun since; if so, that one is over now."""
        if not isinstance(error, TransactionFailed) or not is_locked(error.error):
            return False
        try:
            if not await self._is_held(connection):
                return False
            await self._end_lost(connection)
        except psycopg.Error:
            await connection.close()
        return True

    async def _has_committed(self) -> bool:
        """Find out whether the last transaction was committed, though its connection was lost.

        Raises:
            ConnectionLost: The server could not be reached again, so nobody can tell.
        """
        for _ in range(MAX_LOST):
            try:
                connection = await self._connected(time.monotonic() + self._patience)
            except ConnectionLost as error:
                raise self._unknown(error.waited) from error
            try:
                return await self._read_mark(connection) >= self._batch
            except psycopg.Error:
                await connection.close()
        raise self._unknown(0.0)

    def _unknown(self, waited: float) -> ConnectionLost:
        ended = f"{self._server.name} was lost at the end of a write"
        return ConnectionLost(f"{ended}: whether it was written is not known, look before you do it again", waited)

    async def _read_mark(self, connection: Connection) -> int:
        """Return the last transaction of this writer that was committed."""
        cursor = await connection.execute("SELECT batch FROM store_writers WHERE writer_id = %(id)s", {"id": self._id})
        row = await cursor.fetchone()
        return 0 if row is None else row["batch"]

    async def _connected(self, until: float) -> Connection:
        """Return a connection that lives. Nothing is under way any more on one that was lost.

        Raises:
            ConnectionLost: The server could not be reached `until` then, or is still at what was under way.
        """
        while self._connection is None or self._connection.closed:
            connection, self.facts = await self._server.connect_patiently(until)
            try:
                if self._connection is not None:
                    await self._end_lost(connection)
                self._connection = connection
            except psycopg.Error as error:
                await connection.close()
                if time.monotonic() > until:
                    raise ConnectionLost(f"{self._server.name} ends every connection") from translate(error)
                await asyncio.sleep(LOOK_SECONDS)
            except BaseException:
                await connection.close()
                raise
        return self._connection

    async def _end_lost(self, connection: Connection) -> None:
        """Wait until the lost connection's transaction is over; end its session if that waits for its client.

        A network may lose a client without the server's hearing of it, for hours. Behind a pooler, the session that
        is ended is the pooler's, which gives it to nobody else as long as our transaction holds it.

        Raises:
            ConnectionLost: It went on for too long.
        """
        end = time.monotonic() + self._patience
        while await self._is_held(connection):
            if time.monotonic() > end:
                raise ConnectionLost(
                    f"{self._server.name} is still at what was under way when the connection was lost, and whether "
                    "that will be written is not known: look before you do it again",
                    self._patience,
                )
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):  # then only waiting helps
                await connection.execute(
                    f"SELECT pg_terminate_backend(pid) {_OTHER_HOLDERS} AND wait_event_type = 'Client'",
                    {"lock": self._lock},
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _is_held(self, connection: Connection) -> bool:
        """Whether another session holds the writer's lock: the one that was lost."""
        cursor = await connection.execute(f"SELECT 1 {_OTHER_HOLDERS}", {"lock": self._lock})
        return bool(await cursor.fetchall())

    def _mark(self) -> dict[str, Any]:
        return {"writer_id": self._id, "batch": self._batch, "now": self._clock()}


def _refusal_to_write(connection: Connection, error: BaseException) -> DatabaseError | None:
    """Return what says that the server takes no writes; of the isolation that a standby cannot give, it does not."""
    reason = translate(error.error) if isinstance(error, TransactionFailed) else error
    if isinstance(reason, ReadOnlyDatabase):
        return reason
    is_standby = connection.info.parameter_status("in_hot_standby") == "on"
    return translate(ReadOnlySqlTransaction()) if is_standby else None


def _final(error: psycopg.Error, waited: float) -> Exception:
    return DatabaseBusy(waited) if is_passing(error) else translate(error)
