"""`JobStore`, the facade: one open database with its outputs folder, and the repositories bound to it."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar
from weakref import WeakKeyDictionary

from jobstore.aio import finish, in_thread
from jobstore.clock import Clock, system_clock
from jobstore.databases import Database, find_database, require_schema
from jobstore.disk import DiskGuard
from jobstore.engines.base import StoreStats
from jobstore.errors import InvalidArgument, StoreClosed
from jobstore.migrate import Step
from jobstore.operations import jobs, promotion
from jobstore.outputs import MAX_OUTPUT_BYTES, place_of
from jobstore.overviews import Vacuumed
from jobstore.repositories import maintenance
from jobstore.repositories.arguments import check_range
from jobstore.repositories.backend import Backend
from jobstore.repositories.calls import CallRepository
from jobstore.repositories.jobs import JobRepository
from jobstore.repositories.lanes import LaneRepository
from jobstore.repositories.migrations import MigrationRepository
from jobstore.repositories.retention import RetentionRepository
from jobstore.repositories.sessions import FileRepository, SessionRepository
from jobstore.repositories.state import CachedStateRepository, KeyValueRepository
from jobstore.repositories.tables import TableRepository
from jobstore.repositories.workers import WorkerRepository
from jobstore.sql import MakeOperation, Operation, Row, Statement, Value

T = TypeVar("T")
P = ParamSpec("P")

MAX_POOL_SIZE = 1000
"""Each is a thread and some file handles."""
MAX_BYTES = 2**50
MAX_INLINE_LIMIT = 100_000_000
"""Bytes. SQLite takes no row above a thousand million, and rewrites each row whole."""


class JobStore:
    """A durable store of jobs. Use it as an async context manager, in one event loop.

    Args:
        url: The path of the database file, `sqlite:///abs/path.db` or `postgresql://user@host/database`; None reads
            `JOBSTORE_URL`.
        migrate: Bring the schema up to date when opening, or adopt a database of the old system. Meant for scripts
            and tests: in production, migrations are run by hand.
        outputs: Where large texts lie: a folder, by default `<database file>.outputs`, or a URL:
            `file:///shared/folder`, and with the extra `objects` `s3://bucket/prefix`, `gs://…` or `az://…`, for
            which credentials and endpoint come from the environment. On PostgreSQL there is no default.
        pool_size: How many connections read at the same time.
        inline_limit: Bytes up to which a text stays in its row; larger ones go to files.
        max_output_bytes: Bytes that one answer may have. What passes it is refused, and what was streamed is kept.
        min_free_bytes: Bytes of its disks that are kept for what is under way: with fewer, `enqueue`, `claim` and
            `record` are refused, and reports on what runs are not. 0 keeps none. None is 64 MiB, or 2 % of a smaller
            disk. Looked at once a second at most; on PostgreSQL, and in object storage, only what lies on this host.
        durability: "full": what an awaited call has written survives a power cut. "normal": it survives any
            end of the process, but a power cut may take the last commits.
        clock: The present time in milliseconds since the Unix epoch; replaced by tests.

    Raises:
        InvalidArgument: An argument cannot be accepted; it names the argument.

    Example:
        >>> async with JobStore("jobs.db") as store:
        ...     job = await store.jobs.enqueue("Say hello", task_type="greeting", api_type="claude")
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        migrate: bool = False,
        outputs: str | os.PathLike[str] | None = None,
        pool_size: int = 4,
        inline_limit: int = jobs.INLINE_LIMIT,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        min_free_bytes: int | None = None,
        durability: Literal["full", "normal"] = "full",
        clock: Clock = system_clock,
    ) -> None:
        self._database = find_database(url)
        self.path = self._database.path
        """The database's file, if it is one."""
        self.name = self._database.name
        """What the database is called in messages: without a password."""
        if durability not in {"full", "normal"}:
            raise InvalidArgument("durability", 'must be "full" or "normal"')
        check_range("pool_size", pool_size, 1, MAX_POOL_SIZE, InvalidArgument)
        check_range("inline_limit", inline_limit, 0, MAX_INLINE_LIMIT, InvalidArgument)
        check_range("max_output_bytes", max_output_bytes, 1, MAX_BYTES, InvalidArgument)
        if min_free_bytes is not None:
            check_range("min_free_bytes", min_free_bytes, 0, MAX_BYTES, InvalidArgument)
        self._migrate = migrate
        place = outputs or self._database.outputs
        self._outputs = None if place is None else place_of(place)
        self._pool_size = pool_size
        self._inline_limit = inline_limit
        self._max_output_bytes = max_output_bytes
        folders = [self.path and self.path.parent, self._outputs if isinstance(self._outputs, Path) else None]
        self._disk = DiskGuard([folder for folder in folders if folder is not None], min_free_bytes)
        self._durability: Literal["full", "normal"] = durability
        self._clock = clock
        self._open: _Open | None = None
        self._opening = asyncio.Lock()  # however many tasks open it at once, it is opened once

    def __repr__(self) -> str:
        """Name the database and whether it is open."""
        return f"<JobStore {self.name} {'closed' if self._open is None else 'open'}>"

    async def __aenter__(self) -> Self:
        """Open the store."""
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the store."""
        await self.close()

    def __del__(self) -> None:
        """Warn of a forgotten close. Nothing that was acknowledged is lost by it."""
        if getattr(self, "_open", None) is not None:
            warnings.warn(f"{self!r} was not closed: use `async with` or `await store.close()`", ResourceWarning, 2)

    async def open(self) -> Self:
        """Open the store; `async with` does it.

        Raises:
            DatabaseNotFound: There is no such file, or it is a folder.
            MigrationRequired: Migrations are pending; the message names the command to run.
            SchemaMismatch: The database was migrated by a newer version, or an applied step was changed.
            DatabaseInUse: The file is being restored, reset or repaired, and still was after 30 s.
            DatabaseCorrupt: The file is not an SQLite database, or it is damaged.
            ReadOnlyDatabase: It cannot be written.
            OutputError: The outputs belong to another store, or cannot be reached.
        """
        async with self._opening:
            if self._open is not None:
                self._open.backend.check_usable()
                return self
            steps = await in_thread(self._database.load)
            if self._migrate:
                await in_thread(lambda: self._database.migrator(self._clock, self._outputs).run())
            engine = self._database.engine(self._clock, self._pool_size, self._durability)
            backend = Backend(engine, self._outputs, self._inline_limit, self._max_output_bytes, self._disk)
            await backend.open(partial(_check, database=self._database, steps=steps))  # which is kept: not with `self`
            self._open = _Open(backend, steps)
            return self

    async def close(self) -> None:
        """Finish what was accepted and release everything. Closing twice is fine.

        Raises:
            StoreClosed: It belongs to another process or event loop.
        """
        if self._open is None:
            return
        backend = self._open.backend
        backend.check_usable()
        self._open = None
        await finish(backend.close())

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed since."""
        return self._open is not None

    @property
    def jobs(self) -> JobRepository:
        """The jobs."""
        return self._opened().jobs

    @property
    def calls(self) -> CallRepository:
        """The ledger: the requests to language models that were made for jobs."""
        return self._opened().calls

    @property
    def lanes(self) -> LaneRepository:
        """The lanes: how they stand, pausing and resuming them."""
        return self._opened().lanes

    @property
    def workers(self) -> WorkerRepository:
        """The workers that live."""
        return self._opened().workers

    @property
    def retention(self) -> RetentionRepository:
        """The policies by which what has grown old is removed."""
        return self._opened().retention

    @property
    def tables(self) -> TableRepository:
        """Whole tables, to be dumped and loaded."""
        return self._opened().tables

    @property
    def sessions(self) -> SessionRepository:
        """The sessions by project."""
        return self._opened().sessions

    @property
    def files(self) -> FileRepository:
        """The paths selected for sessions."""
        return self._opened().files

    @property
    def cached_state(self) -> CachedStateRepository:
        """User interface state by project."""
        return self._opened().cached_state

    @property
    def kv(self) -> KeyValueRepository:
        """General application state."""
        return self._opened().kv

    @property
    def migrations(self) -> MigrationRepository:
        """The steps of the schema."""
        return self._opened().migrations

    async def run(self, make_operation: MakeOperation[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an operation of your own atomically, and return its value once it is durable.

        Args:
            make_operation: Called with the present time in milliseconds and `args`, it makes a fresh operation;
                it may be called again, so it has no effect but its statements and its value.
            *args: Passed to it.
            **kwargs: Passed to it.

        Raises:
            StatementFailed: The database refused a statement. Nothing of the operation was written.
            InvalidArgument: A statement would end the transaction, such as COMMIT.

        Example:
            >>> def order(now: int, name: str) -> Operation[None]:
            ...     yield from execute("INSERT INTO orders (name, at) VALUES (:name, :now)", name=name, now=now)
            >>> await store.run(order, "first")
        """
        backend = self._opened().backend

        def make(now: int) -> Operation[T]:
            operation = make_operation(now, *args, **kwargs)
            if not isinstance(operation, Generator):
                raise InvalidArgument("make_operation", "must be a generator function: def f(now, …) with `yield from`")
            return operation

        return await backend.write(make, size=_size((*args, *kwargs.values())), wakes=True)

    async def execute(self, sql: str, params: Mapping[str, Value] | None = None) -> list[Row]:
        """Run one SQL statement, with `:name` parameters, as an operation of its own; return its rows.

        Raises:
            StatementFailed: The database refused it. Nothing was written.
            InvalidArgument: It would end the transaction that it shares, such as COMMIT, or the parameters have no
                names.

        Example:
            >>> await store.execute("SELECT id FROM background_jobs WHERE priority > :least", {"least": 5})
        """
        if not isinstance(sql, str):
            raise InvalidArgument("sql", f"must be a str, not {type(sql).__name__}")
        if params is not None and not isinstance(params, Mapping):
            raise InvalidArgument("params", "must be a mapping: write :name in the text and give {'name': value}")
        parameters = dict(params or {})

        def statement(_now: int) -> Operation[list[Row]]:
            rows: list[Row] = yield Statement(sql, parameters, "all")
            return rows

        return await self._opened().backend.write(statement, size=_size(tuple(parameters.values())), wakes=True)

    def stats(self) -> StoreStats:
        """Return the figures of the writer, the pool of readers and the wake signals."""
        return self._opened().backend.stats()

    async def sweep(self) -> int:
        """Remove large texts that no row names and that are older than a day; return how many.

        Crashes leave such texts; it may run at any time, beside anything.

        Raises:
            OutputError: The outputs cannot be listed.
        """
        return await maintenance.sweep(self._opened().backend)

    async def maintain(self) -> list[str]:
        """Do what is due to keep the store in shape, unless another process is at it; return what was done.

        Workers call it by themselves, about once a minute; this is for workers of your own. It is due each hour to
        apply the retention policies (`"retention"`) and to give space back when much is free (`"space"`), and each
        day to sweep (`"sweep"`). It works in small rounds and pauses as long as each took. Cancelled, it goes on when
        it is due again.

        Raises:
            DatabaseError: The database is unwell.
            OutputError: The outputs cannot be listed.

        Example:
            >>> await store.maintain()
            ['retention', 'sweep', 'space']
        """
        return await maintenance.maintain(self._opened().backend)

    async def vacuum(self, *, secure: bool = False) -> Vacuumed:
        """Give space back that holds nothing, beside anything, in steps of some milliseconds.

        A file's free pages are cut off, and its write-ahead log is moved into it. On PostgreSQL the server vacuums
        and analyzes each table.

        Args:
            secure: Raise unless nothing that was deleted is left in the file or its log. What a file system, an SSD
                or a backup keeps is out of reach.

        Returns:
            What it took before and after.

        Raises:
            InvalidArgument: The file was made without auto_vacuum: `jobstore vacuum --full` writes it anew. Or
                `secure` is asked of a database that cannot do it, such as PostgreSQL.
            DatabaseError: With `secure`: readers kept the log.

        Example:
            >>> print((await store.vacuum()).after.total)
        """
        return await maintenance.vacuum(self._opened().backend, secure=secure)

    def _opened(self) -> _Open:
        if self._open is None:
            raise StoreClosed("the store is not open: use it inside `async with JobStore(…) as store:`")
        return self._open


class _Open:
    """An open store's backend and the repositories bound to it."""

    def __init__(self, backend: Backend, steps: Sequence[Step]) -> None:
        self.backend = backend
        self.jobs = JobRepository(backend)
        self.calls = CallRepository(backend)
        self.lanes = LaneRepository(backend)
        self.workers = WorkerRepository(backend)
        self.retention = RetentionRepository(backend)
        self.tables = TableRepository(backend)
        self.sessions = SessionRepository(backend)
        self.files = FileRepository(backend)
        self.cached_state = CachedStateRepository(backend)
        self.kv = KeyValueRepository(backend)
        self.migrations = MigrationRepository(backend, steps)


def _check(now: int, database: Database, steps: Sequence[Step]) -> Operation[None]:
    """Refuse a database whose schema is not the one that the operations were written for, or that is not whole yet."""
    yield from require_schema(now, database, steps)
    yield from promotion.refuse_unfinished(now)


def _size(values: tuple[Any, ...]) -> int:
    """Return about how many bytes wait with these arguments."""
    return sum(len(value) for value in values if isinstance(value, str | bytes))


_default_stores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[JobStore]] = WeakKeyDictionary()


async def ensure_connection() -> JobStore:
    """Return the process's default store, named by `JOBSTORE_URL`: one per event loop, opened once.

    Raises:
        InvalidArgument: `JOBSTORE_URL` is not set.
        DatabaseError: It cannot be opened; see `JobStore.open`. The next call tries again.

    Example:
        >>> store = await jobstore.ensure_connection()
    """
    loop = asyncio.get_running_loop()
    opening = _default_stores.get(loop)
    if opening is None or (opening.done() and not _is_open(opening)):
        opening = _default_stores[loop] = loop.create_task(JobStore().open())
    return await asyncio.shield(opening)  # one caller's cancellation is not the others'


async def close_database() -> None:
    """Close the process's default store of this event loop. Without one, it does nothing."""
    opening = _default_stores.pop(asyncio.get_running_loop(), None)
    if opening is not None:
        await finish(_close_opened(opening))


async def _close_opened(opening: asyncio.Task[JobStore]) -> None:
    await asyncio.wait([opening])
    if _is_open(opening):
        await opening.result().close()


def _is_open(opening: asyncio.Task[JobStore]) -> bool:
    """Whether an attempt at opening a store has succeeded, and nobody has closed it since."""
    return not opening.cancelled() and opening.exception() is None and opening.result().is_open
