"""Drives operations on a plain sqlite3 connection: all that happens on the connection's own thread."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from jobstore.engines.base import Request
from jobstore.errors import (
    ConstraintFailed,
    ConstraintKind,
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    JobStoreError,
    ReadOnlyDatabase,
    StatementFailed,
)
from jobstore.sql import Dialect, MakeOperation, Operation, Row, Statement

T = TypeVar("T")

DIALECT = Dialect(
    lock_rows="",  # one writer at a time: there is nobody to pass over
    lateral=False,
    writes_in_with=False,
    takes_arrays=False,
    holds_nul=True,
    column_types="SELECT name, type FROM pragma_table_info(:table) ORDER BY cid",
)

MAX_BATCH_SECONDS = 0.05
"""A batch begins no further operation after this long: other processes wait for its end."""
BUSY_RETRY_SECONDS = 0.001
"""Between tries for the write lock. SQLite's own backoff starves others: p99.9 was 630 ms against 16 ms (measured)."""
POLITE_GAP_SECONDS = 0.0015
"""How long another process is given after a batch, once it was seen to write as well."""

_CONSTRAINTS: dict[str, ConstraintKind] = {
    "SQLITE_CONSTRAINT_UNIQUE": "unique",
    "SQLITE_CONSTRAINT_PRIMARYKEY": "unique",
    "SQLITE_CONSTRAINT_FOREIGNKEY": "foreign_key",
    "SQLITE_CONSTRAINT_CHECK": "check",
    "SQLITE_CONSTRAINT_NOTNULL": "not_null",
}
_REFUSED = frozenset(
    "BEGIN COMMIT END ROLLBACK SAVEPOINT RELEASE PRAGMA ATTACH DETACH VACUUM".split()  # noqa: SIM905 - reads as SQL
)
_FIRST_WORD = re.compile(r"(?:[\s;\ufeff]|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*([A-Za-z]*)", re.DOTALL)


class RolledBack(Exception):
    """SQLite ended the whole transaction, with all that the batch had done before; `error` says why."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(str(error))


class Committed(NamedTuple):
    """How a batch went."""

    driven: int
    """How many of its requests were driven, from the first on; each has its value or its error."""
    foreign: bool
    """Whether another process had committed since the last batch."""
    changed: bool
    """Whether the batch changed any row."""


class Transactions:
    """Commits batches on the one writing connection.

    Args:
        clock: The present time in milliseconds, passed to each operation as it is driven.
        deadline: How long to try for the write lock, in seconds.
    """

    def __init__(self, clock: Callable[[], int], deadline: float) -> None:
        self.check: MakeOperation[[], None] | None = None
        """Reads the schema, and refuses one that is not what the operations were written for."""
        self._schema_version = -1
        self._clock = clock
        self._deadline = deadline
        self._data_version = 0
        self._foreign = False  # until someone was told of it
        self._gap_until = 0.0

    def commit(self, connection: sqlite3.Connection, batch: Sequence[Request]) -> Committed:
        """Drive as much of a batch as its time allows, each request in a savepoint of its own, and commit.

        Raises:
            DatabaseBusy: The write lock could not be had.
            MigrationRequired: The schema was changed since the store was opened.
            SchemaMismatch: It was changed by a newer version.
            DatabaseError: The disk failed. Nothing was written.
        """
        before = connection.total_changes
        self._be_polite()
        begin(connection, self._deadline)
        try:
            self._check_schema(connection)
            self._look(connection)
            driven = self._drive_all(connection, batch)
            connection.execute("COMMIT")
        except (RolledBack, sqlite3.Error) as reason:
            error = _meaning(reason)
            roll_back(connection)
            if _is_fatal(error):
                raise error from reason.__cause__
            # Someone's operation took the others down with it: each gets a transaction of its own.
            self._commit_one_by_one(connection, batch)
            driven = len(batch)
        except BaseException:
            roll_back(connection)
            raise
        foreign = self._take_foreign()
        if foreign:
            self._gap_until = time.monotonic() + POLITE_GAP_SECONDS
        return Committed(driven, foreign, connection.total_changes != before)

    def saw_foreign_commit(self, connection: sqlite3.Connection) -> bool:
        """Return whether another connection has committed since this, or a batch, last told of it."""
        self._look(connection)
        return self._take_foreign()

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """Let nothing be written by the rules of another schema: of tables, or of steps, each of which changes it."""
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        if version != self._schema_version:
            if self.check is not None:
                drive(connection, self.check(self._clock()))
            self._schema_version = version

    def _look(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        self._foreign |= version != self._data_version
        self._data_version = version

    def _take_foreign(self) -> bool:
        foreign, self._foreign = self._foreign, False
        return foreign

    def _be_polite(self) -> None:
        gap = self._gap_until - time.monotonic()
        if gap > 0:
            time.sleep(gap)

    def _drive_all(self, connection: sqlite3.Connection, batch: Sequence[Request]) -> int:
        end = time.monotonic() + MAX_BATCH_SECONDS
        for driven, request in enumerate(batch, start=1):
            self._drive_in_savepoint(connection, request)
            if time.monotonic() > end:
                return driven
        return len(batch)

    def _drive_in_savepoint(self, connection: sqlite3.Connection, request: Request) -> None:
        connection.execute("SAVEPOINT operation")
        request.value = request.error = None
        try:
            request.value = drive(connection, request.make_operation(self._clock(), *request.args))
        except RolledBack:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is this caller's alone
            connection.execute("ROLLBACK TO operation")
            # No future takes a StopIteration.
            request.error = RuntimeError("the operation raised it") if isinstance(error, StopIteration) else error
        connection.execute("RELEASE operation")

    def _commit_one_by_one(self, connection: sqlite3.Connection, batch: Sequence[Request]) -> None:
        end = time.monotonic() + self._deadline
        for request in batch:
            try:
                begin(connection, max(0.0, end - time.monotonic()))
                self._check_schema(connection)
                self._drive_in_savepoint(connection, request)
                connection.execute("COMMIT")
            except (RolledBack, sqlite3.Error, DatabaseError) as reason:
                request.error = _meaning(reason)
                roll_back(connection)


def begin(connection: sqlite3.Connection, deadline: float) -> None:
    """Begin a writing transaction.

    Raises:
        DatabaseBusy: Another process held the write lock for `deadline` seconds.
        DatabaseError: Any other reason.
    """
    roll_back(connection)  # of a transaction whose own rollback failed
    execute_patiently(connection, "BEGIN IMMEDIATE", deadline)


def execute_patiently(connection: sqlite3.Connection, sql: str, deadline: float) -> None:
    """Execute a statement outside a transaction; while another process is in its way, try about every millisecond.

    Raises:
        DatabaseBusy: It was in the way for `deadline` seconds.
        DatabaseError: Any other reason.
    """
    started = time.monotonic()
    while True:
        try:
            connection.execute(sql).fetchall()
        except sqlite3.Error as error:
            waited = time.monotonic() - started
            if not _is_busy(error):
                raise translate(error) from error
            if waited >= deadline:
                raise DatabaseBusy(waited) from error
            time.sleep(BUSY_RETRY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        else:
            return


def roll_back(connection: sqlite3.Connection) -> None:
    """End the open transaction, if there is one, without a trace. If that fails, the next `begin` tries again."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def read(connection: sqlite3.Connection, operation: Operation[T]) -> T:
    """Drive an operation that only reads, on one snapshot."""
    try:
        return read_on(connection, operation)
    finally:
        roll_back(connection)


def read_on(connection: sqlite3.Connection, operation: Operation[T]) -> T:
    """Drive an operation that only reads, on the snapshot that the connection holds, or begins to hold by it."""
    try:
        if not connection.in_transaction:
            connection.execute("BEGIN")
        return drive(connection, operation)
    except sqlite3.Error as error:
        raise translate(error) from error
    except RolledBack as reason:
        raise reason.error from reason.__cause__


def drive(connection: sqlite3.Connection, operation: Operation[T]) -> T:
    """Run an operation's statements on a connection and return its value.

    A statement's error is thrown into the operation, which may say what it means.

    Raises:
        RolledBack: SQLite ended the transaction.
    """
    try:
        statement = next(operation)
        while True:
            try:
                result = run(connection, statement)
            except (sqlite3.Error, ValueError, OverflowError, InvalidArgument) as error:
                failure = failure_of(error)
            else:
                statement = operation.send(result)
                continue
            if not connection.in_transaction or _is_fatal(failure):
                operation.close()
                raise RolledBack(failure) from failure.__cause__
            statement = operation.throw(failure)
    except StopIteration as stop:
        value: T = stop.value
        return value


def failure_of(error: Exception) -> JobStoreError:
    """Return the error of this package for a statement that failed."""
    if isinstance(error, InvalidArgument):
        return error
    failure = translate(error)
    failure.__cause__ = None if _quotes_text(error) else error
    return failure


def run(connection: sqlite3.Connection, statement: Statement) -> Any:  # noqa: ANN401 - depends on `fetch`
    """Run one statement and return what it asks for."""
    if not isinstance(statement, Statement):
        raise InvalidArgument("make_operation", "must yield statements: write `yield from execute(…)` and the like")
    sql, parameters, fetch = statement
    if fetch == "dialect":
        return DIALECT
    refuse_control(sql)
    if fetch == "many":
        return connection.executemany(sql, parameters).rowcount
    cursor = connection.execute(sql, parameters)
    try:
        rows = cursor.fetchall()  # to the end, or a RETURNING would neither be finished nor let go of its locks
    except BaseException:
        cursor.close()  # half read, it would hold up every writer
        raise
    if fetch == "count":
        return cursor.rowcount
    named = _named(cursor, rows)
    if fetch == "one":
        return named[0] if named else None
    return named


def _named(cursor: sqlite3.Cursor, rows: list[tuple[Any, ...]]) -> list[Row]:
    if not rows:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


@lru_cache(maxsize=1024)
def refuse_control(sql: str) -> None:
    """Refuse what would end or change the transaction that the operation shares with others."""
    match = _FIRST_WORD.match(sql)
    word = match.group(1).upper() if match else ""
    if word in _REFUSED:
        raise InvalidArgument("sql", f"{word} is the store's own business: use a connection of your own for it")


def translate(error: Exception) -> DatabaseError:
    """Return the error of this package that says what an error of sqlite3 means."""
    if not isinstance(error, sqlite3.Error):
        return StatementFailed(f"a parameter cannot be stored: {type(error).__name__}")
    name = _name(error)
    if name.startswith("SQLITE_CONSTRAINT"):
        return ConstraintFailed(str(error), _CONSTRAINTS.get(name, "other"))
    for prefix, make in _MEANINGS:
        if name.startswith(prefix):
            return make(error)
    if _quotes_text(error):
        return StatementFailed("a text in the database is not UTF-8: store it anew, or read it as CAST(… AS BLOB)")
    return StatementFailed(str(error))


_MEANINGS: tuple[tuple[str, Callable[[sqlite3.Error], DatabaseError]], ...] = (
    ("SQLITE_FULL", lambda _: DiskFull("the disk is full: nothing was written; free some space and try again")),
    ("SQLITE_IOERR", lambda error: DiskFailed(f"the disk failed ({error}): nothing of this was acknowledged")),
    ("SQLITE_NOTADB", lambda _: DatabaseCorrupt("the file is not an SQLite database: check the path")),
    ("SQLITE_CORRUPT", lambda error: DatabaseCorrupt(f"the database is damaged ({error}): restore a backup")),
    (
        "SQLITE_READONLY",
        lambda _: ReadOnlyDatabase("the database cannot be written: check the file's and its folder's permissions"),
    ),
    (
        "SQLITE_CANTOPEN",
        lambda _: ReadOnlyDatabase(
            "the database cannot be opened: check the folder's permissions and free file handles"
        ),
    ),
    ("SQLITE_BUSY", lambda _: DatabaseBusy(0.0)),
    ("SQLITE_LOCKED", lambda _: DatabaseBusy(0.0)),
)


def _meaning(reason: Exception) -> BaseException:
    if isinstance(reason, RolledBack):
        return reason.error
    return translate(reason) if isinstance(reason, sqlite3.Error) else reason


def _is_fatal(error: BaseException) -> bool:
    """Whether the database itself failed, so that trying the batch's operations again would be in vain."""
    return isinstance(error, DiskFailed | DatabaseCorrupt | ReadOnlyDatabase)


def _is_busy(error: sqlite3.Error) -> bool:
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_PROTOCOL"))


def _name(error: Exception) -> str:
    """Return SQLite's name of an error; empty for those of the sqlite3 module itself."""
    return getattr(error, "sqlite_errorname", None) or ""


def _quotes_text(error: Exception) -> bool:
    """Whether an error quotes a text that is nobody else's to read.

    Those are Python's own, not SQLite's: of a value that could not be encoded, or of a text that could not be decoded.
    """
    if isinstance(error, sqlite3.Error):
        return isinstance(error, sqlite3.OperationalError) and not _name(error)
    return True
