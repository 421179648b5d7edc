"""The SQLite engine: one writing connection with group commit, and a pool of readers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import sqlite3
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout

from jobstore import ownership
from jobstore.aio import finish, in_thread
from jobstore.clock import Clock
from jobstore.engines import sqlite_driver as driver
from jobstore.engines import sqlite_space
from jobstore.engines.base import Request, Snapshot, StoreStats, wake_stats
from jobstore.engines.group_commit import GroupCommit
from jobstore.engines.signal import Signal
from jobstore.engines.sqlite_doorbell import Doorbell
from jobstore.engines.sqlite_pool import ReaderPool
from jobstore.engines.sqlite_space import file_size
from jobstore.engines.sqlite_thread import ThreadConnection
from jobstore.errors import DatabaseError, DatabaseNotFound, ReadOnlyDatabase
from jobstore.overviews import Space
from jobstore.sql import MakeOperation

logger = logging.getLogger(__name__)

T = TypeVar("T")
Durability = Literal["full", "normal"]

MINIMUM_SQLITE = (3, 37, 2)
"""Before it, rolling back to a savepoint could damage the database, and there were no STRICT tables."""
WAL_LIMIT = 16 * 2**20
"""Bytes of the write-ahead log from which on a checkpoint is tried."""
BUSY_DEADLINE = 30.0
POOL_TIMEOUT = 30.0
READ_BUSY_MILLISECONDS = 5_000
"""Readers wait only while a log is recovered or the last other connection closes."""
EMPTY_MILLISECONDS = 50
"""How long the end of a vacuum waits at a time, and nobody else can write, for the readers of the log."""
LOG_PAUSE, LOG_DEADLINE = 0.2, 10.0
"""Seconds between its tries, and in all."""
POLL_FASTEST, POLL_SLOWEST = 0.005, 0.1
"""Seconds between looks for other processes' commits while someone waits for them."""
POLL_RUNG = 0.25
"""The same while they ring: it finds what went wrong with that, and programs that write without the store."""


class SQLiteEngine:
    """Drives operations on one SQLite file.

    Args:
        path: The file, which must exist.
        clock: The present time in milliseconds.
        pool_size: How many reading connections there may be.
        durability: "full": what was acknowledged survives a power cut; "normal": it survives any end of a process.
    """

    dialect = driver.DIALECT

    def __init__(self, path: Path, clock: Clock, pool_size: int, durability: Durability) -> None:
        self.clock = clock
        self.changes = Signal()
        self.work = Signal()
        self._path = path
        self._writer = ThreadConnection(partial(connect_writer, path, durability))
        self._readers = ReaderPool(partial(_connect_reader, path), pool_size, POOL_TIMEOUT)
        self._transactions = driver.Transactions(clock, BUSY_DEADLINE)
        self._checkpoint = _Checkpoint(path)
        self._doorbell = Doorbell(path, self._heard)
        self._share = ownership.Share(path)
        self._queue = GroupCommit(self._commit, self._committed, BUSY_DEADLINE)
        self._foreign = 0
        self._secure = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, check: MakeOperation[[], None]) -> None:
        """Connect, let `check` read the database and refuse it, then make it ready.

        Raises:
            DatabaseNotFound: There is no such file, or it is a folder.
            DatabaseInUse: Somebody has it to itself, to restore it or the like.
            DatabaseCorrupt: It is not an SQLite database.
            ReadOnlyDatabase: It cannot be written.
        """
        self._loop = asyncio.get_running_loop()
        self._transactions.check = check
        try:
            while not await in_thread(self._share.take):  # noqa: ASYNC110 - another process's lock has no event
                await asyncio.sleep(ownership.RETRY_SECONDS)
            await self._open(check)
        except BaseException:
            self._share.release()
            raise

    async def _open(self, check: MakeOperation[[], None]) -> None:
        try:
            await finish(self._writer.connect())
            await asyncio.shield(self._writer.submit(_check_and_prepare, check(self.clock())))
            await in_thread(self._share.keep)
            # From here on: what others commit before the first look of a waiter must not pass for known.
            await asyncio.shield(self._writer.submit(self._transactions.saw_foreign_commit))
            await in_thread(self._doorbell.open)
        except BaseException:
            # To the end: until the file is closed, nobody may put another in its place.
            await finish(self._writer.disconnect())
            raise

    async def close(self) -> None:
        """Finish what was accepted, then release everything. Closing twice is fine."""
        await self._queue.close()
        if self._poller is not None:
            self._poller.cancel()
        self._doorbell.listen(None)
        self.changes.notify()  # whoever waits finds the store closed
        self.work.notify()
        await self._readers.close()
        await self._writer.disconnect()
        await in_thread(self._doorbell.close)
        self._share.release()

    def write(self, request: Request) -> Coroutine[Any, Any, Any]:
        """Run an operation that may write, as `Engine.write` tells."""
        return self._queue.submit(request)

    def write_soon(self, request: Request) -> None:
        """Queue a finishing operation that nobody waits for, as `Engine.write_soon` tells."""
        self._queue.submit_nowait(request)

    async def write_aside(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation past the queue, from any thread's event loop, between two batches."""
        request = Request(make_operation, args)
        committed = await asyncio.shield(self._writer.submit(self._transactions.commit, [request]))
        if committed.foreign and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits there any more
                self._loop.call_soon_threadsafe(self._notice_foreign)
        if request.error is not None:
            raise request.error
        value: T = request.value
        return value

    def read(self, make_operation: MakeOperation[..., T], *args: Any) -> Coroutine[Any, Any, T]:  # noqa: ANN401
        """Run an operation that only reads, on one snapshot.

        Raises:
            PoolTimeout: No reading connection became free in time.
        """
        return self._readers.run(partial(driver.read, operation=make_operation(self.clock(), *args)))

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Hold one snapshot for several operations; the log grows meanwhile.

        Raises:
            PoolTimeout: No reading connection became free in time.
        """
        async with self._readers.hold(driver.roll_back) as connection:
            yield _Snapshot(connection, self.clock)

    async def wait(self, signal: Signal, since: int, timeout: float | None) -> int:
        """Wait until a signal's count differs from `since` or `timeout` seconds pass; return its count."""
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        return await signal.wait(since, timeout)

    def stats(self) -> StoreStats:
        """Return the figures of now."""
        return StoreStats(
            writer=self._queue.stats(),
            pool=self._readers.stats(),
            wake=wake_stats(self.changes, self.work, self._foreign),
        )

    async def space(self) -> Space:
        """Return what the file and its log take."""
        return await self._writer.submit(sqlite_space.space, self._path)

    @contextlib.asynccontextmanager
    async def overwriting(self) -> AsyncIterator[None]:
        """Overwrite meanwhile what is deleted."""
        async with self._secure:
            try:
                await asyncio.shield(self._writer.submit(partial(sqlite_space.overwrite, fully=True)))
                yield
            finally:
                await finish(self._overwrite_no_more())

    async def _overwrite_no_more(self) -> None:
        await self._writer.submit(partial(sqlite_space.overwrite, fully=False))

    async def vacuum(self, tables: Sequence[str], *, spare: int, secure: bool) -> AsyncGenerator[None, None]:  # noqa: ARG002
        """Give free pages back, as `Engine.vacuum` tells, then move the log into the file.

        Raises:
            InvalidArgument: The file was made without auto_vacuum.
            DatabaseError: It failed, or, with `secure`, a reader of another program has kept the log.
        """
        began = time.monotonic()
        while (held := await self._writer.submit(self._give_back, spare)) is not None:
            await asyncio.sleep(held)  # so that others have half of the time at least
            yield
        while not await self._writer.submit(self._checkpoint.empty_log):
            waited = time.monotonic() - began
            if waited > LOG_DEADLINE:
                if secure:
                    raise DatabaseError(
                        f"for {waited:.0f} s another program was reading or writing all the time: what was deleted "
                        f"may still be in {self._path}-wal; run it again when that is done"
                    )
                return
            await asyncio.sleep(LOG_PAUSE)

    def _give_back(self, connection: sqlite3.Connection, spare: int) -> float | None:
        held = sqlite_space.give_back(connection, spare, BUSY_DEADLINE)
        self._checkpoint.after_batch(connection)
        return held

    def _commit(self, batch: list[Request]) -> asyncio.Future[driver.Committed]:
        return self._writer.submit(self._commit_on_thread, batch)

    def _commit_on_thread(self, connection: sqlite3.Connection, batch: list[Request]) -> driver.Committed:
        committed = self._transactions.commit(connection, batch)
        if committed.changed:
            self._doorbell.ring(work=any(request.wakes for request in batch))
        self._checkpoint.after_batch(connection)
        return committed

    def _committed(self, committed: driver.Committed, batch: list[Request]) -> None:
        if committed.foreign:
            self._notice_foreign()
        elif committed.changed:
            self.changes.notify()
            if any(request.wakes for request in batch):
                self.work.notify()

    def _notice_foreign(self) -> None:
        self._heard(work=True)

    def _heard(self, *, work: bool) -> None:
        """Tell who waits that another process has committed."""
        self.changes.notify()
        if work:
            self._foreign += 1
            self.work.notify()

    async def _poll(self) -> None:
        """Look for other processes' commits while anyone waits for them, less often while there are none."""
        rung = self._doorbell.listen(asyncio.get_running_loop())
        fastest, slowest = (POLL_RUNG, POLL_RUNG) if rung else (POLL_FASTEST, POLL_SLOWEST)
        try:
            await self._look_while_someone_waits(fastest, slowest)
        finally:
            self._doorbell.listen(None)

    async def _look_while_someone_waits(self, fastest: float, slowest: float) -> None:
        interval = fastest
        while self.changes.waiting or self.work.waiting:
            await asyncio.sleep(interval)
            try:
                changed = await self._writer.submit(self._transactions.saw_foreign_commit)
            except sqlite3.Error:
                changed = True  # unknown: let those who wait look for themselves
            if changed:
                self._notice_foreign()
                interval = fastest
            else:
                interval = min(interval * 1.2, slowest)


class _Snapshot:
    """A reading connection in a transaction."""

    def __init__(self, connection: ThreadConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    async def read(self, make_operation: MakeOperation[..., T], *args: Any) -> T:  # noqa: ANN401
        """Run an operation that only reads."""
        operation = make_operation(self._clock(), *args)
        return await asyncio.shield(self._connection.submit(driver.read_on, operation))


class _Checkpoint:
    """Moves the write-ahead log into the database, one process at a time.

    SQLite before 3.51.3 (and beside the fixed 3.44.6 and 3.50.7) can damage a database when two checkpoints run
    at once while a commit resets the log (https://sqlite.org/wal.html, "The WAL Reset Bug"); so SQLite's own are
    switched off, and this one runs under a lock.
    """

    def __init__(self, path: Path) -> None:
        self._log = f"{path}-wal"
        self._lock = FileLock(f"{path}.checkpoint.lock", blocking=False, mode=0o600)
        self._next = WAL_LIMIT

    def after_batch(self, connection: sqlite3.Connection) -> None:
        """Checkpoint if the log has outgrown its limit and nobody else is at it."""
        size = file_size(self._log)
        if size < WAL_LIMIT:
            self._next = WAL_LIMIT
        elif size >= self._next:
            # A reader may hold the log's beginning: then try again only when it has grown as much again.
            self._next = size + WAL_LIMIT
            try:
                with self._lock:
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except Timeout:
                return  # another process is at it
            except Exception as error:  # noqa: BLE001 - what was committed is safe in the log, and stays acknowledged
                logger.warning("the write-ahead log could not be moved into the database (%s)", type(error).__name__)

    def empty_log(self, connection: sqlite3.Connection) -> bool:
        """Move all of the log into the database and cut it off; return False if someone is in the way.

        It waits for readers no longer than writers can bear: with 3 s and one open reader it took 2.8 s (measured).
        """
        try:
            with self._lock:
                connection.execute(f"PRAGMA busy_timeout={EMPTY_MILLISECONDS}")
                (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except Timeout:
            return False
        except sqlite3.Error as error:
            raise driver.translate(error) from error
        finally:
            connection.execute("PRAGMA busy_timeout=0")
        return bool(busy == 0)


def is_there(path: Path) -> bool:
    """Return whether there is a file; without one, there is at least the folder for it.

    Raises:
        DatabaseNotFound: It is a folder, or there is no such folder, or it cannot be told.
    """
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not path.parent.is_dir():
            raise DatabaseNotFound(str(path), f"the folder {path.parent} does not exist") from None
        return False
    except OSError as error:
        raise DatabaseNotFound(str(path), f"it cannot be looked at: {error.strerror}") from error
    if stat.S_ISDIR(kind):
        raise DatabaseNotFound(str(path), "it is a folder; name a file in it")
    if not stat.S_ISREG(kind):  # to open a pipe would wait for another program
        raise DatabaseNotFound(str(path), "it is no regular file: name another")
    return True


def connect_writer(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open the writing connection: no waiting inside SQLite, explicit transactions, no checkpoint of its own.

    Raises:
        DatabaseNotFound: There is no such file, or it is a folder.
        DatabaseError: It cannot be opened.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        needed = ".".join(map(str, MINIMUM_SQLITE))
        raise DatabaseError(f"SQLite {sqlite3.sqlite_version} is too old: {needed} or newer is needed")
    if not is_there(path):
        command = f"python -m jobstore.migrate --db {shlex.quote(str(path))}"
        raise DatabaseNotFound(str(path), f"create it with `{command}`")
    connection = _connect(path, "rw")
    try:
        connection.execute(f"PRAGMA busy_timeout={READ_BUSY_MILLISECONDS}")  # a log may have to be recovered first
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA synchronous={durability.upper()}")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT // 2}")
        connection.execute("PRAGMA secure_delete=FAST")
        # A claim sorts a handful of rows; in a file of its own that took 130 µs instead of 50 (measured).
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error as error:
        connection.close()
        raise driver.translate(error) from error
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    connection = _connect(path, "ro")
    try:
        connection.execute(f"PRAGMA busy_timeout={READ_BUSY_MILLISECONDS}")
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA temp_store=MEMORY")
    except sqlite3.Error as error:
        connection.close()
        raise driver.translate(error) from error
    return connection


def _connect(path: Path, mode: Literal["rw", "ro"]) -> sqlite3.Connection:
    # Transactions are begun explicitly, so isolation_level is None from the start; a forgotten connection
    # is closed by another thread than its own, so the check for that is off.
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    try:
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=512)
    except sqlite3.Error as error:
        raise driver.translate(error) from error


def _check_and_prepare(connection: sqlite3.Connection, check: Any) -> None:  # noqa: ANN401 - an operation
    driver.read(connection, check)
    try:
        driver.execute_patiently(connection, "PRAGMA journal_mode=WAL", BUSY_DEADLINE)
        connection.execute("PRAGMA busy_timeout=0")  # our own, fairer retry takes over
        _probe_writing(connection)
    except sqlite3.Error as error:
        raise driver.translate(error) from error


def _probe_writing(connection: sqlite3.Connection) -> None:
    """Find out now, not at the first job, whether the file can be written."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        meaning = driver.translate(error)
        if isinstance(meaning, ReadOnlyDatabase):
            raise meaning from error
