"""Operations in a transaction of the user's own: `drive` runs one on a connection that the user holds."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import aiosqlite

from jobstore.aio import finish
from jobstore.engines import sqlite_driver
from jobstore.errors import InvalidArgument
from jobstore.sql import Operation, Statement

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")


async def drive(connection: Any, operation: Operation[T]) -> T:  # noqa: ANN401 - of several libraries
    """Run an operation in the transaction that is open on a connection of yours: your rows and the job commit together.

    It ends no transaction, and begins one only where psycopg or SQLAlchemy would before the next statement. Workers
    hear of the commit as of any other. An operation that fails takes back what it did, not your transaction: roll that
    back, or go on.

    Args:
        connection: A psycopg `AsyncConnection`, a `sqlite3.Connection` or an `aiosqlite.Connection` on the store's
            database, or SQLAlchemy's `AsyncConnection` on psycopg or aiosqlite. With `sqlite3` itself the call blocks.
            SQLite looks whether a job's session exists only where `PRAGMA foreign_keys=ON` was said before.
        operation: Made with the present time in milliseconds, as `jobstore.enqueue(now, …)` is.

    Raises:
        InvalidArgument: It is no such connection or operation, no transaction is open on it, or it is in psycopg's
            pipeline mode.
        DatabaseError: The database refused a statement.

    Example:
        >>> async with await psycopg.AsyncConnection.connect(url) as connection, connection.transaction():
        ...     await connection.execute("INSERT INTO orders (item) VALUES ('tea')")
        ...     new = NewJob(prompt="Brew tea", task_type="order", api_type="claude")
        ...     await drive(connection, enqueue(system_clock(), new))
    """
    if not isinstance(operation, Generator):
        raise InvalidArgument("operation", "must be one, made by a call such as enqueue(system_clock(), new)")
    held = await _unwrapped(connection)
    if isinstance(held, sqlite3.Connection):
        _require(_is_in_transaction(held))
        with _as_ours(held):
            return _drive_sqlite(held, operation)
    if isinstance(held, aiosqlite.Connection):
        _require(held is not connection or _is_in_transaction(held))
        with _as_ours(held):
            if not held.in_transaction:  # SQLAlchemy has begun it by its own account: SQLite hears at the first write
                await held.execute("BEGIN IMMEDIATE")
            return await _drive_aiosqlite(held, operation)
    if _is_psycopg(held):
        return await _drive_psycopg(held, operation)
    operation.close()
    kinds = "psycopg's AsyncConnection, a sqlite3 or aiosqlite connection, or SQLAlchemy's AsyncConnection"
    kind = f"{type(held).__module__}.{type(held).__qualname__}"  # by its name alone, it might be one of them
    raise InvalidArgument("connection", f"must be {kinds}, not {kind}")


async def _unwrapped(connection: Any) -> Any:  # noqa: ANN401
    """Return what SQLAlchemy drives, or the connection itself."""
    if not hasattr(connection, "get_raw_connection"):
        return connection
    _require(connection.in_transaction())
    return (await connection.get_raw_connection()).driver_connection


def _is_psycopg(connection: object) -> TypeGuard[psycopg.AsyncConnection[Any]]:
    library = sys.modules.get("psycopg")  # loaded by whoever made a connection of it
    return library is not None and isinstance(connection, library.AsyncConnection)


@contextlib.contextmanager
def _as_ours(connection: sqlite3.Connection | aiosqlite.Connection) -> Iterator[None]:
    """Let rows be tuples and texts be str meanwhile, whatever the user's own queries give, and errors be ours."""
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        yield
    except sqlite3.Error as error:  # such as that it is another thread's
        failure = sqlite_driver.failure_of(error)
        raise failure from failure.__cause__
    finally:
        connection.row_factory, connection.text_factory = factories


def _is_in_transaction(connection: sqlite3.Connection | aiosqlite.Connection) -> bool:
    with contextlib.suppress(sqlite3.ProgrammingError, ValueError):  # closed
        return connection.in_transaction
    return False


def _require(in_transaction: bool) -> None:  # noqa: FBT001
    if not in_transaction:
        raise InvalidArgument("connection", "must be in a transaction: begin one, and commit it after this call")


def _drive_sqlite(connection: sqlite3.Connection, operation: Operation[T]) -> T:
    connection.execute("SAVEPOINT jobstore")
    try:
        value = sqlite_driver.drive(connection, operation)
    except BaseException as reason:
        if connection.in_transaction:  # else SQLite has ended it, with all of the user's
            connection.execute("ROLLBACK TO jobstore")
            connection.execute("RELEASE jobstore")
        if isinstance(reason, sqlite_driver.RolledBack):
            raise reason.error from reason.__cause__
        raise
    connection.execute("RELEASE jobstore")
    return value


async def _drive_aiosqlite(connection: aiosqlite.Connection, operation: Operation[T]) -> T:
    await connection.execute("SAVEPOINT jobstore")
    try:
        value = await _drive_statements(connection, operation)
    except BaseException:
        if connection.in_transaction:
            await finish(_take_back(connection))
        raise
    await connection.execute("RELEASE jobstore")
    return value


async def _take_back(connection: aiosqlite.Connection) -> None:
    await connection.execute("ROLLBACK TO jobstore")
    await connection.execute("RELEASE jobstore")


async def _drive_statements(connection: aiosqlite.Connection, operation: Operation[T]) -> T:
    """Drive statement by statement: the connection's thread is the library's own."""
    try:
        statement = next(operation)
        while True:
            try:
                result = await _run(connection, statement)
            except (sqlite3.Error, ValueError, OverflowError, InvalidArgument) as error:
                failure = sqlite_driver.failure_of(error)
                if not connection.in_transaction:  # SQLite has ended it: what came next would be committed by itself
                    operation.close()
                    raise failure from failure.__cause__
                statement = operation.throw(failure)
            else:
                statement = operation.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def _run(connection: aiosqlite.Connection, statement: Statement) -> Any:  # noqa: ANN401 - depends on `fetch`
    sql, parameters, fetch = statement
    if fetch == "dialect":
        return sqlite_driver.DIALECT
    sqlite_driver.refuse_control(sql)
    if fetch == "many":
        return (await connection.executemany(sql, parameters)).rowcount
    async with connection.execute(sql, parameters) as cursor:
        return _fetched(cursor, list(await cursor.fetchall()), fetch)


def _fetched(cursor: aiosqlite.Cursor, rows: list[Any], fetch: str) -> Any:  # noqa: ANN401
    if fetch == "count":
        return cursor.rowcount
    names = [column[0] for column in cursor.description or ()]
    named = [dict(zip(names, tuple(row), strict=True)) for row in rows]
    if fetch == "one":
        return named[0] if named else None
    return named


async def _drive_psycopg(connection: psycopg.AsyncConnection[Any], operation: Operation[T]) -> T:
    from psycopg.pq import PipelineStatus, TransactionStatus  # noqa: PLC0415 - needs the extra

    from jobstore.engines import postgres_driver  # noqa: PLC0415 - needs the extra

    status = connection.info.transaction_status
    _require(status == TransactionStatus.INTRANS or (status == TransactionStatus.IDLE and not connection.autocommit))
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        raise InvalidArgument("connection", "must not be in pipeline mode: an operation needs each result at once")
    return await postgres_driver.drive_for(connection, operation)
