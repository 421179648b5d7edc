"""The PostgreSQL engine: one writing connection with group commit in pipelines, and a pool of readers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, Literal, TypeVar
from weakref import WeakSet

import psycopg
import psycopg_pool
from uuid_utils import uuid7

from jobstore.aio import finish
from jobstore.clock import Clock, system_clock
from jobstore.engines import postgres_driver as driver
from jobstore.engines import postgres_space
from jobstore.engines.base import PoolStats, Request, Snapshot, StoreStats, wake_stats
from jobstore.engines.group_commit import GroupCommit
from jobstore.engines.postgres_driver import TransactionFailed
from jobstore.engines.postgres_errors import translate
from jobstore.engines.postgres_listener import Listener
from jobstore.engines.postgres_pipeline import Bound, Connection
from jobstore.engines.postgres_schema import SchemaGuard
from jobstore.engines.postgres_server import Server
from jobstore.engines.postgres_statements import DIALECT
from jobstore.engines.postgres_writer import BATCH_LOCK_TIMEOUT, RowLocked, Writer
from jobstore.engines.signal import Signal
from jobstore.errors import ConnectionLost, DatabaseBusy, DatabaseError, PoolTimeout, SchemaMismatch, StoreClosed
from jobstore.overviews import Space
from jobstore.sql import MakeOperation, Operation, fetch_all

T = TypeVar("T")
Durability = Literal["full", "normal"]

PATIENCE = 30.0
"""Seconds for which a caller waits for a lost server or a locked row, and a transaction is tried again that lost
against others."""
POOL_TIMEOUT = 30.0
ASIDE = 4
"""Connections that wait for rows which others have locked, so that the shared one need not."""
MAX_READS = 5
"""Times that a read is tried whose connection was lost: a server that crashes may end those made meanwhile, too."""
READ_PAUSE = 0.05
"""Seconds before it is tried again; they double each time."""
ABANDONED_SECONDS = 1.0
"""How long a read may go on whose caller was cancelled, before it is cancelled on the server as well."""


class Committed:
    """How a batch went; all of it was driven."""

    def __init__(self, driven: int, *, changed: bool) -> None:
        self.driven = driven
        self.changed = changed


class PostgresEngine:
    """Drives operations on one schema of a PostgreSQL database.

    Args:
        url: As libpq takes it.
        name: What it is called in messages: without a password.
        clock: The present time in milliseconds. What is measured between this host's own clock and the server's is
            added to it, so that hosts whose clocks differ agree on when a lease ends; but only if it is this host's
            own clock, and no other that someone has put in its place.
        pool_size: How many reading connections there may be.
        durability: "full": what was acknowledged survives a power cut; "normal": the last commits may be lost with it.
        host_clock: This host's own clock.

    Raises:
        InvalidArgument: The URL cannot be understood.
    """

    dialect = DIALECT

    def __init__(
        self,
        url: str,
        name: str,
        clock: Clock,
        pool_size: int,
        durability: Durability,
        host_clock: Clock = system_clock,
    ) -> None:
        self.changes = Signal()
        self.work = Signal()
        self._store_clock = clock
        self._is_host_clock = clock is host_clock
        self._server = Server(url, name, host_clock)
        self._durability = durability
        self._pool_size = pool_size
        self._channel = ""
        self._listener = Listener(self._server, str(uuid7()), self.changes.notify, self._heard_of_work, self._look)
        self._patience = PATIENCE
        self._guard = SchemaGuard()
        self._writer = self._new_writer(BATCH_LOCK_TIMEOUT)
        self._queue = GroupCommit(self._commit, self._committed, PATIENCE, lambda request: request.guarded)
        self._readers: psycopg_pool.AsyncConnectionPool[Connection] | None = None
        self._aside = asyncio.Semaphore(ASIDE)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()
        self._begun: WeakSet[asyncio.Task[Any]] = WeakSet()  # reads that have had a connection
        self._beating: dict[asyncio.AbstractEventLoop, Writer] = {}
        self._foreign = self._timeouts = self._reads = self._reading = 0

    def clock(self) -> int:
        """Return the present time in milliseconds, as the server's clock has it unless a test turns it by hand."""
        return self._store_clock() + (self._writer.facts.offset if self._is_host_clock else 0)

    async def open(self, check: MakeOperation[[], None]) -> None:
        """Connect, let `check` read the database and refuse it, then make it ready.

        Raises:
            DatabaseNotFound: There is no such server, database or user.
            SchemaMismatch: The server is too old, or has no such schema.
        """
        await self._writer.open()
        try:
            connection, _ = await self._server.connect()
            try:  # its own `async with` would not close it for a cancelled caller
                await self._find_channel(connection)
                await self._guard.open(connection, check, self.clock())
            finally:
                await connection.close()
            await self._writer.forget_gone()
            self._readers = self._server.pool(self._pool_size, POOL_TIMEOUT, pooled=self._writer.facts.pooled)
            await self._readers.open()
            await self._listener.start(self._channel, pooled=self._writer.facts.pooled)
        except BaseException as error:
            await finish(self._release())
            reason = error.error if isinstance(error, TransactionFailed) else error
            if isinstance(reason, psycopg.Error):
                raise translate(reason) from None
            raise

    async def close(self) -> None:
        """Finish what was accepted, then release everything. Closing twice is fine."""
        await self._queue.close()
        await self._release()

    async def _release(self) -> None:
        await self._listener.close()
        self.changes.notify()  # whoever waits finds the store closed
        self.work.notify()
        if self._abandoned:
            await asyncio.wait(self._abandoned)
        if self._readers is not None:
            await self._readers.close()
        for writer in self._beating.values():
            writer.abandon()
        self._beating.clear()
        await self._writer.close()

    def write(self, request: Request) -> Coroutine[Any, Any, Any]:
        """Run an operation that may write, as `Engine.write` tells."""
        return self._queue.submit(request)

    def write_soon(self, request: Request) -> None:
        """Queue a finishing operation that nobody waits for, as `Engine.write_soon` tells."""
        self._queue.submit_nowait(request)

    async def write_aside(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation on a connection of the calling event loop's own, from any thread."""
        loop = asyncio.get_running_loop()
        writer = self._beating.get(loop)
        if writer is None:
            writer = self._beating[loop] = self._new_writer(BATCH_LOCK_TIMEOUT)
        request = Request(make_operation, args)
        try:
            await writer.commit_alone(request)
        except RowLocked:
            raise DatabaseBusy(BATCH_LOCK_TIMEOUT) from None
        if request.error is not None:
            raise request.error
        value: T = request.value
        return value

    async def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads, on one snapshot.

        Cancelled, it raises at once, and the read goes on for a moment: a query that is cancelled costs its
        connection, and a worker that is woken cancels a read each time.

        Raises:
            PoolTimeout: No reading connection became free in time.
            ConnectionLost: The server went away.
        """
        reading = asyncio.get_running_loop().create_task(self._read(make_operation, *args))
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            self._abandon(reading)
            raise
        return reading.result()

    def _note_begun(self) -> None:
        if (task := asyncio.current_task()) is not None:
            self._begun.add(task)

    def _abandon(self, reading: asyncio.Task[Any]) -> None:
        """Let a read go on for a moment, unless it has not begun, or too many do."""
        self._abandoned.add(reading)
        reading.add_done_callback(self._forget)
        if reading not in self._begun or len(self._abandoned) > max(1, self._pool_size // 2):
            reading.cancel()
        else:
            asyncio.get_running_loop().call_later(ABANDONED_SECONDS, reading.cancel)

    def _forget(self, reading: asyncio.Task[Any]) -> None:
        self._abandoned.discard(reading)
        if not reading.cancelled():
            reading.exception()  # looked at, so that nobody is told that it was not

    async def _read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        for tries in range(1, MAX_READS + 1):
            try:
                async with self._reader() as connection:
                    self._note_begun()
                    return await driver.read(connection, make_operation(self.clock(), *args))
            except TransactionFailed as failure:
                error = translate(failure.error)
                if tries == MAX_READS or not isinstance(error, ConnectionLost):
                    raise error from error.__cause__
                await asyncio.sleep(READ_PAUSE * 2 ** (tries - 1))
                if self._readers is not None:
                    await self._readers.check()  # whatever ended this connection may have ended the idle ones too
        raise AssertionError

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Hold one snapshot for several operations; the server removes no dead rows meanwhile.

        Raises:
            PoolTimeout: No reading connection became free in time.
            ConnectionLost: The server went away, now or later.
        """
        async with self._reader() as connection, driver.snapshot(connection):
            yield _Snapshot(connection, self.clock)

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[Connection]:
        if self._readers is None:
            raise StoreClosed("the store is closed: open it again before using it")
        try:
            async with self._readers.connection() as connection:
                self._reads += 1
                self._reading += 1
                try:
                    yield connection
                finally:
                    self._reading -= 1
        except psycopg_pool.PoolTimeout:
            raise self._no_reader() from None
        except psycopg_pool.PoolClosed:
            raise StoreClosed("the store is closed: open it again before using it") from None

    def _no_reader(self) -> PoolTimeout | ConnectionLost:
        self._timeouts += 1
        if self._reading:
            return PoolTimeout(self._pool_size, POOL_TIMEOUT)
        return ConnectionLost(f"{self._server.name} could not be reached for {POOL_TIMEOUT} s", POOL_TIMEOUT)

    def wait(self, signal: Signal, since: int, timeout: float | None) -> Coroutine[Any, Any, int]:
        """Wait until a signal's count differs from `since` or `timeout` seconds pass; return its count."""
        return signal.wait(since, timeout)

    def space(self) -> Coroutine[Any, Any, Space]:
        """Return what the tables of the schema take, with their indexes."""
        return self.read(postgres_space.space)

    def overwriting(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Refuse: the server keeps what was deleted until it is vacuumed, and does not overwrite it.

        Raises:
            InvalidArgument: Always.
        """
        raise postgres_space.cannot_overwrite()

    async def vacuum(self, tables: Sequence[str], *, spare: int, secure: bool) -> AsyncGenerator[None, None]:  # noqa: ARG002
        """Let the server vacuum and analyze each table, as it does by itself now and then.

        Raises:
            InvalidArgument: `secure` is asked for.
            DatabaseError: It failed.
        """
        if secure:
            raise postgres_space.cannot_overwrite()
        async with contextlib.aclosing(postgres_space.vacuum(self._server, tables)) as steps:
            async for _ in steps:
                yield

    def stats(self) -> StoreStats:
        """Return the figures of now."""
        pool = {} if self._readers is None else self._readers.get_stats()
        return StoreStats(
            writer=self._queue.stats(),
            pool=PoolStats(
                size=self._pool_size,
                open=self._reading + pool.get("pool_available", 0),  # its own figure counts those it still seeks
                in_use=self._reading,
                waiting=pool.get("requests_waiting", 0),
                timeouts=self._timeouts,
                reads=self._reads,
            ),
            wake=wake_stats(self.changes, self.work, self._foreign),
        )

    def _new_writer(self, lock_timeout: float) -> Writer:
        return Writer(
            self._server, self.clock, self._durability, lock_timeout, self._patience, self._notice, self._guard
        )

    def _notice(self, wakes: bool) -> Bound:  # noqa: FBT001 - called by the writer
        return self._listener.notice(self._channel, wakes=wakes)

    async def _find_channel(self, connection: Connection) -> None:
        cursor = await connection.execute(
            f"SELECT current_schema() AS schema, {driver.CHANNEL} AS channel,"
            " (SELECT nspname FROM pg_class JOIN pg_namespace AS space ON space.oid = relnamespace"
            " WHERE pg_class.oid = to_regclass('migrations')) AS found"
        )
        [row] = await cursor.fetchall()
        if row["schema"] is None:
            raise SchemaMismatch(f"{self._server.name} has none of the schemas of its search_path: create one of them")
        if row["found"] not in {None, row["schema"]}:
            raise SchemaMismatch(
                f"the tables that {self._server.name} sees are in schema {row['found']}, but {row['schema']} comes "
                "first in its search_path: run the migrations for it, or name the other alone"
            )
        self._channel = row["channel"]

    def _commit(self, batch: list[Request]) -> asyncio.Future[Committed]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Committed] = loop.create_future()
        task = self._spawn(self._commit_batch(batch))
        task.add_done_callback(lambda done: _hand_over(done, future))
        return future

    async def _commit_batch(self, batch: list[Request]) -> Committed:
        if batch[0].guarded:
            changed = await self._writer.commit_together(batch)
        else:
            changed = await self._commit_or_defer(batch[0])
        return Committed(len(batch), changed=changed)

    async def _commit_or_defer(self, request: Request) -> bool:
        try:
            return await self._writer.commit_alone(request)
        except RowLocked:
            request.deferred = True
            return False

    def _committed(self, committed: Committed, batch: list[Request]) -> None:
        for request in batch:
            if request.deferred:
                self._spawn(self._commit_aside(request))
        if committed.changed:
            self._notify(wakes=any(request.wakes for request in batch))

    def _notify(self, *, wakes: bool) -> None:
        self.changes.notify()
        if wakes:
            self.work.notify()

    async def _commit_aside(self, request: Request) -> None:
        """Wait for rows that someone else has locked on another connection, so that nobody waits behind it."""
        try:
            async with self._aside:
                await self._commit_patiently(request)
        except RowLocked:
            request.error = DatabaseBusy(time.monotonic() - request.since)
        except DatabaseError as error:
            request.error = error
        except BaseException:
            request.error = StoreClosed("the event loop ended before the outcome was known")
            raise
        finally:
            self._queue.settle(request)  # after which the store may be closed

    async def _commit_patiently(self, request: Request) -> None:
        left = request.since + self._patience - time.monotonic()  # it may have waited for its turn
        writer = self._new_writer(max(left, BATCH_LOCK_TIMEOUT))
        try:
            if await writer.commit_alone(request):
                self._notify(wakes=request.wakes)
        finally:
            await writer.close()

    async def _look(self) -> str:
        """Return what differs once anyone has written anything, and compare the clocks: this host's may be set anew."""
        before = self._server.host_clock()
        number, server_time = await self.read(_next_transaction)
        facts = self._writer.facts
        self._writer.facts = facts._replace(offset=self._server.offset(before, server_time, facts.offset))
        return number

    def _heard_of_work(self) -> None:
        self._foreign += 1
        self._notify(wakes=True)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Snapshot:
    """A reading connection in a transaction."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._turn = asyncio.Lock()

    async def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads."""
        try:
            async with self._turn:
                value, _ = await driver.drive_alone(self._connection, make_operation(self._clock(), *args))
        except TransactionFailed as failure:
            raise translate(failure.error) from None
        return value


def _next_transaction(_now: int) -> Operation[tuple[str, int]]:
    """Return the number of the next transaction that writes, on the whole server, and the server's time."""
    [row] = yield from fetch_all(
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS number,"
        " (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now"
    )
    return row["number"], row["now"]


def _hand_over(done: asyncio.Task[T], future: asyncio.Future[T]) -> None:
    """Answer a batch. Its task is cancelled by nobody but an event loop that ends."""
    if future.done():
        return
    error = StoreClosed("the event loop ended before the outcome was known") if done.cancelled() else done.exception()
    if error is not None:
        future.set_exception(error)
    else:
        with contextlib.suppress(asyncio.InvalidStateError):
            future.set_result(done.result())
