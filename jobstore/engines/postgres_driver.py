"""Drives operations on a psycopg connection: several in turns through a pipeline, or one alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.abc import AdaptContext
from psycopg.rows import DictRow, dict_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader

from jobstore.engines.base import Request
from jobstore.engines.postgres_errors import is_locked, is_passing, translate
from jobstore.engines.postgres_pipeline import Bound, Connection, Result, run_together
from jobstore.engines.postgres_statements import DIALECT, bound, fetched, wrote
from jobstore.errors import InvalidArgument, StatementFailed
from jobstore.sql import Operation, Statement

T = TypeVar("T")

Cursor = AsyncRawCursor[DictRow]

CHANNEL = "('jobstore:' || current_schema())::name::text"
"""What processes listen on, as SQL: a name, which the server cuts off at 63 bytes."""
SERIALIZABLE = "BEGIN ISOLATION LEVEL SERIALIZABLE"
READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"
SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class TransactionFailed(Exception):
    """The transaction was undone; `error` is psycopg's reason."""

    def __init__(self, error: psycopg.Error) -> None:
        self.error = error
        super().__init__(type(error).__name__)


class MustBeAlone(Exception):
    """An operation failed after it had changed rows: the others of its transaction are to be driven again."""


@dataclass(slots=True)
class _Drive:
    """One operation under way."""

    request: Request
    operation: Operation[Any]
    statement: Statement
    results: list[Result] = field(default_factory=list)
    """Of that statement."""
    changed: bool = False


@contextlib.asynccontextmanager
async def pipeline(connection: Connection) -> AsyncIterator[None]:
    """Send what is executed within without waiting for the results; at the end all are there.

    After a failure, psycopg would log what else fails at the pipeline's end, values that the server quotes included.
    Cancelled meanwhile, it closes the connection: what is still under way would be taken for the next one's results.
    """
    failure: BaseException | None = None
    try:
        async with connection.pipeline():
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised below, whatever it is
                failure = error
    except psycopg.Error as error:
        failure = failure or error
    except asyncio.CancelledError as error:
        failure = error
    if isinstance(failure, asyncio.CancelledError):
        connection.pgconn.finish()
    if failure is not None:
        raise failure


async def drive_in_turns(
    connection: Connection,
    requests: Sequence[Request],
    now: int,
    prelude: Sequence[Bound],
    begun: Callable[[Sequence[Result]], None],
) -> bool:
    """Drive operations through a pipeline, the first statement of each in one round trip, then the second of each.

    The transaction is left open; each request has its value or its error.

    Args:
        connection: In no transaction.
        requests: Guarded ones.
        now: The present time in milliseconds.
        prelude: Begins the transaction.
        begun: Told what the prelude has read; raises if the transaction cannot go on.

    Returns:
        Whether any row was changed.

    Raises:
        TransactionFailed: A statement failed.
        MustBeAlone: An operation failed after it had changed rows.
    """
    running = [drive for request in requests if (drive := _begin(request, now)) is not None]
    changed = False
    first = prelude
    while running or first:
        try:
            groups = _grouped(running)
            sent = [bound(*(drive.statement for drive in group)) for group in groups]
            results = await run_together(connection, [*first, *itertools.chain.from_iterable(sent)])
        except psycopg.Error as error:
            raise TransactionFailed(error) from None
        except (InvalidArgument, StatementFailed, ValueError, OverflowError) as error:
            raise MustBeAlone from error  # alone, it is told what it did wrong
        if first:
            begun(results[: len(first)])
        answers = iter(results[len(first) :])
        for group, statements in zip(groups, sent, strict=True):
            _hand_out(list(itertools.islice(answers, len(statements))), group)
        changed |= any(drive.changed for drive in running)
        running = [drive for drive in running if _go_on(drive)]
        first = ()
    return changed


async def drive_alone(connection: Connection, operation: Operation[T]) -> tuple[T, bool]:
    """Drive one operation in the open transaction, each statement in a savepoint, so that it may survive a failure.

    Returns:
        Its value, and whether any row was changed.

    Raises:
        TransactionFailed: The transaction cannot go on.
    """
    changed = False
    try:
        statement = next(operation)
        while True:
            try:
                result, wrote = await _in_savepoint(connection, statement)
            except (psycopg.Error, InvalidArgument, StatementFailed) as error:
                if isinstance(error, psycopg.Error) and _ends_transaction(connection, error):
                    operation.close()
                    raise TransactionFailed(error) from None
                statement = operation.throw(translate(error) if isinstance(error, psycopg.Error) else error)
            else:
                changed |= wrote
                statement = operation.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value, changed


async def read(connection: Connection, operation: Operation[T]) -> T:
    """Drive an operation that only reads, on one snapshot.

    Raises:
        TransactionFailed: The connection is lost.
    """
    try:
        await connection.execute(SNAPSHOT + connection.reading)
        value, _ = await drive_alone(connection, operation)
    except psycopg.Error as error:
        raise TransactionFailed(error) from None
    finally:
        await roll_back(connection)
    return value


@contextlib.asynccontextmanager
async def snapshot(connection: Connection) -> AsyncIterator[None]:
    """Hold one snapshot, however long nothing is asked of it.

    Raises:
        ConnectionLost: The connection is lost.
    """
    try:
        try:
            await connection.execute(SNAPSHOT + connection.reading, prepare=False)
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0", prepare=False)
        except psycopg.Error as error:
            raise translate(error) from None
        yield
    finally:
        await roll_back(connection)


async def drive_for(connection: AsyncConnection[Any], operation: Operation[T]) -> T:
    """Drive an operation in the transaction of a connection that is a user's, all of it or nothing.

    Raises:
        DatabaseError: A statement failed that the operation did not expect, or the connection was lost.
    """
    try:
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            await connection.execute("SELECT 1")  # begins it, as psycopg does; else the next line would, and commit it
        async with connection.transaction():
            value = await _drive_statements(connection, operation)
            await connection.execute(f"SELECT pg_notify({CHANNEL}, ':work')")
    except psycopg.Error as error:
        raise translate(error) from None
    return value


async def _drive_statements(connection: AsyncConnection[Any], operation: Operation[T]) -> T:
    try:
        statement = next(operation)
        while True:
            try:
                async with connection.transaction():  # a savepoint
                    result = fetched(statement.fetch, await _results(await _send(connection, statement)))
            except psycopg.Error as error:
                statement = operation.throw(translate(error))
            except (InvalidArgument, StatementFailed) as error:
                statement = operation.throw(error)
            else:
                statement = operation.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def roll_back(connection: Connection) -> None:
    """End the open transaction, if there is one. A connection that cannot even do that is closed."""
    if connection.closed or connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    try:
        await connection.execute("ROLLBACK")
    except psycopg.Error:
        await connection.close()


def _begin(request: Request, now: int) -> _Drive | None:
    """Start an operation; None if it ended before its first statement."""
    request.value = request.error = None
    try:
        operation = request.make_operation(now, *request.args)
        return _Drive(request, operation, _told_dialect(operation, next(operation)))
    except StopIteration as stop:
        request.value = stop.value
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
        request.error = error
    return None


def _told_dialect(operation: Operation[Any], statement: Statement) -> Statement:
    """Answer what no server need be asked, and return the first statement that one must."""
    while getattr(statement, "fetch", None) == "dialect":  # it may be no statement at all
        statement = operation.send(DIALECT)
    return statement


def _go_on(drive: _Drive) -> bool:
    """Give an operation the result of its statement; return whether it wants another.

    Raises:
        MustBeAlone: It failed, and has changed rows.
    """
    try:
        statement = drive.operation.send(fetched(drive.statement.fetch, drive.results))
        drive.statement = _told_dialect(drive.operation, statement)
    except StopIteration as stop:
        drive.request.value = stop.value
        return False
    except BaseException as error:
        if drive.changed:
            raise MustBeAlone from error
        drive.request.error = error
        return False
    return True


def _grouped(running: Sequence[_Drive]) -> list[list[_Drive]]:
    """Put those together whose statements can be sent as one, where the last of them stands: none comes too early."""
    groups: dict[str | int, list[_Drive]] = {}
    for drive in running:
        statement = drive.statement
        key = statement.sql if getattr(statement, "fetch", None) == "each" else id(drive)
        group = groups.pop(key, [])
        group.append(drive)
        groups[key] = group
    return list(groups.values())


def _hand_out(results: list[Result], group: Sequence[_Drive]) -> None:
    """Give each of the operations that were asked together its own part of the results."""
    if group[0].statement.fetch == "each":
        [(rows, _, command)] = results
        own = {row["number"]: [row] for row in rows}
        parts = [own.get(number, []) for number in range(1, len(group) + 1)]
        shares = [[Result(part, len(part), command)] for part in parts]
    else:
        shares = [results]
    for drive, share in zip(group, shares, strict=True):
        drive.results = share
        drive.changed |= wrote(drive.statement, share)


async def _send(connection: AsyncConnection[Any], statement: Statement) -> list[Cursor]:
    """Send a statement through psycopg, without waiting for its result if the connection is in a pipeline of its.

    With a parameter, be it one that nothing asks for, psycopg uses the protocol that takes one statement alone: else
    a COMMIT might stand behind the first.
    """
    sent = []
    try:
        for query, values in bound(statement):
            cursor = AsyncRawCursor(connection, row_factory=dict_row)
            configure(cursor)
            sent.append(await cursor.execute(query.text, values or [0]))
    except (ValueError, OverflowError) as error:
        reason = type(error).__name__
    else:
        return sent
    # Out here, because that error quotes the value.
    raise StatementFailed(f"a parameter cannot be stored: {reason}")


async def _results(sent: Sequence[Cursor]) -> list[Result]:
    return [Result(await _rows(cursor), cursor.rowcount, cursor.statusmessage or "") for cursor in sent]


async def _rows(cursor: Cursor) -> list[DictRow]:
    has_rows = cursor.pgresult is not None and cursor.pgresult.nfields > 0  # `description` would describe each column
    return [*await cursor.fetchall()] if has_rows else []


async def _in_savepoint(connection: Connection, statement: Statement) -> tuple[Any, bool]:
    """Run a statement in one round trip; if it fails, the transaction is as it was before."""
    try:
        async with pipeline(connection):
            await connection.execute("SAVEPOINT operation")
            sent = await _send(connection, statement)
            await connection.execute("RELEASE operation")
        results = await _results(sent)
        return fetched(statement.fetch, results), wrote(statement, results)
    except psycopg.Error as error:
        if not _ends_transaction(connection, error):
            await connection.execute("ROLLBACK TO operation")
        raise
    except (InvalidArgument, StatementFailed):
        await connection.execute("ROLLBACK TO operation")
        raise


def _ends_transaction(connection: Connection, error: psycopg.Error) -> bool:
    return connection.closed or is_passing(error) or is_locked(error)


def configure(context: AdaptContext) -> None:
    """Make a connection or a cursor give and take values as every engine does."""
    if context.adapters is None:
        raise AssertionError
    # Whole numbers of any size are one type, so that a statement is prepared once; JSON comes as its text.
    context.adapters.register_dumper(int, Int8Dumper)
    context.adapters.register_loader("json", TextLoader)
