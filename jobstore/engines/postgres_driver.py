"""Drives operations on a psycopg connection: several in turns through a pipeline, or one alone."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.abc import AdaptContext
from psycopg.rows import DictRow, dict_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader

from jobstore.engines.base import Request
from jobstore.errors import (
    ConnectionLost,
    ConstraintFailed,
    ConstraintKind,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    ReadOnlyDatabase,
    StatementFailed,
)
from jobstore.sql import Dialect, Operation, Statement

T = TypeVar("T")

Connection = AsyncConnection[DictRow]

DIALECT = Dialect(
    lock_rows="FOR UPDATE SKIP LOCKED",
    lateral=True,
    holds_nul=False,
)

CHANNEL = "'jobstore:' || current_schema()"
"""What processes listen on, as SQL."""
SERIALIZABLE = "BEGIN ISOLATION LEVEL SERIALIZABLE"
READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"
SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_REFUSED = frozenset(
    "ABORT BEGIN CALL COMMIT COPY DISCARD END LISTEN NOTIFY PREPARE RELEASE RESET ROLLBACK SAVEPOINT SET START "  # noqa: SIM905 - reads as SQL
    "UNLISTEN VACUUM".split()
)
_READING = ("SELECT", "SHOW", "VALUES", "EXPLAIN")
_TOKEN = re.compile(
    r"""\b[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | \$(\w*)\$.*?\$\1\$ |
    :: | :([A-Za-z_]\w*) | %""",
    re.DOTALL | re.VERBOSE,
)
_rollbacks = itertools.count()
_SPACE = re.compile(r"(?:[\s;]|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]*")


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
    changed: bool = False


@contextlib.asynccontextmanager
async def pipeline(connection: Connection) -> AsyncIterator[None]:
    """Send what is executed within without waiting for the results; at the end all are there.

    After a failure, psycopg would log what else fails at the pipeline's end, values that the server quotes included.
    """
    failure: BaseException | None = None
    try:
        async with connection.pipeline():
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised below, whatever it is
                failure = error
    except psycopg.Error:
        if failure is None:
            raise
    if failure is not None:
        raise failure


async def drive_in_turns(connection: Connection, requests: Sequence[Request], now: int, prelude: Sequence[str]) -> bool:
    """Drive operations through a pipeline, the first statement of each in one round trip, then the second of each.

    The transaction is left open; each request has its value or its error.

    Args:
        connection: In no transaction.
        requests: Guarded ones.
        now: The present time in milliseconds.
        prelude: Begins the transaction.

    Returns:
        Whether any row was changed.

    Raises:
        TransactionFailed: A statement failed.
        MustBeAlone: An operation failed after it had changed rows.
    """
    running = [drive for request in requests if (drive := _begin(request, now)) is not None]
    changed = False
    first = list(prelude)
    while running or first:
        try:
            async with pipeline(connection):
                for sql in first:
                    await connection.execute(sql, prepare=False)
                cursors = [await _send(connection.execute, drive.statement) for drive in running]
            results = [await _result(drive, sent) for drive, sent in zip(running, cursors, strict=True)]
        except psycopg.Error as error:
            raise TransactionFailed(error) from None
        except (InvalidArgument, StatementFailed) as error:  # alone, it is told what it did wrong
            raise MustBeAlone from error
        changed |= any(drive.changed for drive in running)
        running = [drive for drive, result in zip(running, results, strict=True) if _go_on(drive, result)]
        first = []
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
        await connection.execute(SNAPSHOT, prepare=False)
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
            await connection.execute(SNAPSHOT, prepare=False)
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
                    result = await _fetched(statement.fetch, await _send_for(connection, statement))
            except psycopg.Error as error:
                statement = operation.throw(translate(error))
            except (InvalidArgument, StatementFailed) as error:
                statement = operation.throw(error)
            else:
                statement = operation.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def _send_for(connection: AsyncConnection[Any], statement: Statement) -> Sent:
    async def execute(query: str, parameters: Mapping[str, Any]) -> psycopg.AsyncCursor[DictRow]:
        cursor = connection.cursor(row_factory=dict_row)
        configure(cursor)
        return await cursor.execute(query, parameters)

    return await _send(execute, statement)


async def roll_back(connection: Connection) -> None:
    """End the open transaction, if there is one. A connection that cannot even do that is closed."""
    if connection.closed or connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    try:
        # psycopg forgets what it has prepared, part of which the failure may have swallowed, on a ROLLBACK of a text
        # that it sees for the first time.
        await connection.execute(f"ROLLBACK /* {next(_rollbacks)} */", prepare=False)
    except psycopg.Error:
        await connection.close()


def _begin(request: Request, now: int) -> _Drive | None:
    """Start an operation; None if it ended before its first statement."""
    request.value = request.error = None
    try:
        operation = request.make_operation(now, *request.args)
        return _Drive(request, operation, next(operation))
    except StopIteration as stop:
        request.value = stop.value
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
        request.error = error
    return None


def _go_on(drive: _Drive, result: object) -> bool:
    """Give an operation the result of its statement; return whether it wants another.

    Raises:
        MustBeAlone: It failed, and has changed rows.
    """
    try:
        drive.statement = drive.operation.send(result)
    except StopIteration as stop:
        drive.request.value = stop.value
        return False
    except BaseException as error:
        if drive.changed:
            raise MustBeAlone from error
        drive.request.error = error
        return False
    return True


Sent = list[psycopg.AsyncCursor[DictRow]]
Execute = Callable[[str, Mapping[str, Any]], Awaitable[psycopg.AsyncCursor[DictRow]]]


async def _send(execute: Execute, statement: Statement) -> Sent:
    """Send a statement, without waiting for its result if the connection is in a pipeline."""
    if not isinstance(statement, Statement):
        raise InvalidArgument("make_operation", "must yield statements: write `yield from execute(…)` and the like")
    sql, parameters, fetch = statement
    if fetch == "dialect":
        return []
    query = to_psycopg(sql)
    rows = parameters if isinstance(parameters, list) else [parameters]
    try:
        return [await execute(query, _checked(row)) for row in rows]
    except (ValueError, OverflowError) as error:
        reason = type(error).__name__
    # Out here, because that error quotes the value.
    raise StatementFailed(f"a parameter cannot be stored: {reason}")


def _checked(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what psycopg could bind but no other engine."""
    for name, value in parameters.items():
        if value is not None and not isinstance(value, str | int | float | bytes):
            raise StatementFailed(f"the parameter {name} cannot be stored: {type(value).__name__}")
    return parameters


async def _result(drive: _Drive, sent: Sent) -> Any:  # noqa: ANN401 - depends on `fetch`
    drive.changed |= any(map(_wrote, sent))
    return await _fetched(drive.statement.fetch, sent)


async def _fetched(fetch: Literal["one", "all", "count", "many", "dialect"], sent: Sent) -> Any:  # noqa: ANN401
    if fetch == "dialect":
        return DIALECT
    if fetch in {"count", "many"}:
        return sum(cursor.rowcount for cursor in sent)
    [cursor] = sent
    has_rows = cursor.pgresult is not None and cursor.pgresult.nfields > 0  # `description` would describe each column
    rows = await cursor.fetchall() if has_rows else []
    if fetch == "one":
        return rows[0] if rows else None
    return rows


def _wrote(cursor: psycopg.AsyncCursor[DictRow]) -> bool:
    command = cursor.statusmessage or ""
    return cursor.rowcount != 0 and not command.startswith(_READING)


async def _in_savepoint(connection: Connection, statement: Statement) -> tuple[Any, bool]:
    """Run a statement in one round trip; if it fails, the transaction is as it was before."""
    try:
        async with pipeline(connection):
            await connection.execute("SAVEPOINT operation", prepare=False)
            sent = await _send(partial(connection.execute, prepare=False), statement)
            await connection.execute("RELEASE operation", prepare=False)
        return await _fetched(statement.fetch, sent), any(map(_wrote, sent))
    except psycopg.Error as error:
        if not _ends_transaction(connection, error):
            await connection.execute("ROLLBACK TO operation", prepare=False)
        raise
    except (InvalidArgument, StatementFailed):
        await connection.execute("ROLLBACK TO operation", prepare=False)
        raise


def _ends_transaction(connection: Connection, error: psycopg.Error) -> bool:
    return connection.closed or is_passing(error) or is_locked(error)


def is_passing(error: psycopg.Error) -> bool:
    """Whether a transaction that failed so succeeds when it is tried again."""
    return isinstance(error, errors.SerializationFailure | errors.DeadlockDetected)


def is_locked(error: psycopg.Error) -> bool:
    """Whether a row was locked by someone else for too long."""
    return isinstance(error, errors.LockNotAvailable)


@lru_cache(maxsize=2048)
def to_psycopg(sql: str) -> str:
    """Return a statement with psycopg's placeholders in place of `:name`.

    Raises:
        InvalidArgument: It would end or change the transaction that the operation shares with others.

    Example:
        >>> to_psycopg("SELECT a % :b, ':c'::text")
        "SELECT a %% %(b)s, ':c'::text"
    """
    word = _first_word(sql)
    if word in _REFUSED:
        raise InvalidArgument("sql", f"{word} is the store's own business: use a connection of your own for it")
    return _TOKEN.sub(_placeholder, sql)


def _first_word(sql: str) -> str:
    space = _SPACE.match(sql)
    word = _WORD.match(sql, space.end() if space else 0)
    return word.group().upper() if word else ""


def statements(script: str) -> list[str]:
    """Return the statements of a script without texts, quoted names and comments, so that a look at words will do.

    Example:
        >>> statements("SELECT ';' /* one; */ ; COMMIT")
        ['SELECT', 'COMMIT']
    """
    return [" ".join(part.split()) for part in _TOKEN.sub(" ", script).split(";")]


def _placeholder(token: re.Match[str]) -> str:
    name = token.group(2)
    return f"%({name})s" if name is not None else token.group().replace("%", "%%")


def translate(error: psycopg.Error) -> DatabaseError:
    """Return the error of this package that says what one of psycopg means.

    Its cause is psycopg's, without the details, in which the server quotes rows.
    """
    meaning = _meaning(error)
    meaning.__cause__ = None if _quotes_text(error) else type(error)(error.diag.message_primary or "")
    return meaning


_CONSTRAINTS: dict[str, ConstraintKind] = {
    "23502": "not_null",
    "23503": "foreign_key",
    "23505": "unique",
    "23514": "check",
}
_MEANINGS: dict[str, Callable[[str], DatabaseError]] = {
    "25006": lambda _: ReadOnlyDatabase("the database takes no writes: connect to the primary server"),
    "40001": lambda _: DatabaseBusy(0.0),
    "40P01": lambda _: DatabaseBusy(0.0),
    "55P03": lambda _: DatabaseBusy(0.0),
    "53100": lambda _: DiskFull("the server's disk is full: nothing was written; free some space and try again"),
    "58030": lambda text: DiskFailed(f"the server's disk failed ({text}): nothing of this was acknowledged"),
    "XX001": lambda text: DatabaseCorrupt(f"the database is damaged ({text}): restore a backup"),
    "XX002": lambda text: DatabaseCorrupt(f"an index is damaged ({text}): rebuild it with REINDEX"),
}


def _meaning(error: psycopg.Error) -> DatabaseError:
    state, text = error.sqlstate or "", error.diag.message_primary or ""
    if state.startswith("23"):
        return ConstraintFailed(text, _CONSTRAINTS.get(state, "other"))
    if state in _MEANINGS:
        return _MEANINGS[state](text)
    if state == "57014":
        return StatementFailed("the statement took longer than the server's statement_timeout allows")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state.startswith(("22", "42")):
        return ConnectionLost(f"the connection to the server was lost ({type(error).__name__}): it is made anew")
    if _quotes_text(error):
        return StatementFailed(f"a value cannot be stored or compared here: {type(error).__name__}")
    return StatementFailed(text or str(error))


def _quotes_text(error: psycopg.Error) -> bool:
    """Whether an error quotes a value that is nobody else's to read: data exceptions do, the server's and psycopg's."""
    return (error.sqlstate or "").startswith("22") or (error.sqlstate is None and isinstance(error, psycopg.DataError))


def configure(context: AdaptContext) -> None:
    """Make a connection or a cursor give and take values as every engine does."""
    if context.adapters is None:
        raise AssertionError
    # Whole numbers of any size are one type, so that a statement is prepared once; JSON comes as its text.
    context.adapters.register_dumper(int, Int8Dumper)
    context.adapters.register_loader("json", TextLoader)
