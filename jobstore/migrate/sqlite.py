"""Applies pending steps to an SQLite database: each with its record in one transaction, after a backup."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobstore.clock import Clock, from_milliseconds, system_clock
from jobstore.engines.sqlite import connect_writer, is_there
from jobstore.engines.sqlite_driver import begin, execute_patiently, roll_back, translate
from jobstore.errors import DatabaseError, SchemaMismatch, StatementFailed
from jobstore.files import create_private
from jobstore.migrate.files import back_up, look
from jobstore.migrate.helpers import has_column, has_table
from jobstore.migrate.steps import (
    SQLITE_STEPS,
    Result,
    Status,
    Step,
    check_applied,
    load_steps,
    pending_steps,
    split_statements,
)
from jobstore.models import AppliedMigration
from jobstore.ownership import Share, shared

BUSY_DEADLINE = 60.0
"""Seconds: another migrator may be at a long step."""

RECORDS = """
    CREATE TABLE IF NOT EXISTS migrations (
        name TEXT NOT NULL PRIMARY KEY,
        checksum TEXT NOT NULL,
        applied_at INTEGER NOT NULL
    ) STRICT
"""
"""The table of what was applied, which is there before any step."""
_NOT_FOR_STEPS = frozenset({sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})


class Migrator:
    """Brings one SQLite file up to date.

    Args:
        path: The file; it is created if there is none.
        steps: What to apply, in order; by default the steps of this version.
        clock: The present time in milliseconds.

    Example:
        >>> Migrator(Path("jobs.db")).run()
    """

    def __init__(self, path: Path, steps: Sequence[Step] | None = None, clock: Clock = system_clock) -> None:
        self._path = path
        self._steps = load_steps(SQLITE_STEPS) if steps is None else list(steps)
        self._clock = clock

    def status(self) -> Status:
        """Return what was applied and what is pending. It changes nothing, not even times of files.

        Raises:
            DatabaseError: There cannot be such a file, it cannot be read, or it does not fit this version.
        """
        applied, is_empty = look(self._path, _read_state) if is_there(self._path) else ([], True)
        check_applied(self._steps, applied)
        return Status(applied, pending_steps(self._steps, applied), not is_empty)

    def run(
        self,
        announce: Callable[[Step], None] = lambda _: None,
        backed_up: Callable[[Path], None] = lambda _: None,
    ) -> Result:
        """Apply what is pending, after a backup of what is there.

        No other program can write between the backup and the end of the first step, so the backup is exactly
        what the migration found. Several migrators at once are fine: each step is applied by one of them.

        Args:
            announce: Called with each step before it is applied.
            backed_up: Called with the path of the backup once it is made.

        Raises:
            DatabaseInUse: Somebody has the file to itself, to restore it or the like.
            DatabaseError: A step failed, and was undone; those before it remain. Or the file does not fit.
        """
        if not self.status().pending:
            return Result([], None)
        try:
            # Others may have it open, but nobody swaps the file meanwhile.
            with shared(self._path) as share, contextlib.closing(self._connect()) as connection:
                _prepare_if_empty(connection)
                connection.execute("PRAGMA busy_timeout=0")  # our own, fairer retry takes over
                return self._apply_all(connection, share, announce, backed_up)
        except sqlite3.Error as error:
            raise translate(error) from error

    def _connect(self) -> sqlite3.Connection:
        create_private(self._path)
        connection = connect_writer(self._path, "full")
        # Before any transaction, where it would be a silent no-op. See the guide: dropping a table that is
        # rebuilt would delete its children's rows.
        connection.execute("PRAGMA foreign_keys=OFF")
        return connection

    def _apply_all(
        self,
        connection: sqlite3.Connection,
        share: Share,
        announce: Callable[[Step], None],
        backed_up: Callable[[Path], None],
    ) -> Result:
        applied: list[str] = []
        backup: Path | None = None
        for step in self._steps:
            with _transaction(connection):
                if not self._is_pending(connection, step):
                    continue
                worth_keeping = not applied and not _is_empty(connection)
                self._record(connection, step)  # before the backup: so it is known that the file can be written
                share.keep()
                if worth_keeping:
                    backup = back_up(self._path)  # which does not see what is not committed
                    backed_up(backup)
                announce(step)
                _apply(connection, step)
            applied.append(step.name)
        return Result(applied, backup)

    def _is_pending(self, connection: sqlite3.Connection, step: Step) -> bool:
        """Ask again, within the transaction: another migrator may have been here meanwhile."""
        applied = _read_applied(connection)
        check_applied(self._steps, applied)
        return step in pending_steps(self._steps, applied)

    def _record(self, connection: sqlite3.Connection, step: Step) -> None:
        connection.execute(RECORDS)
        # A step that changes rows alone would leave SQLite's own count of changes to the schema as it is. By that
        # the writers of open stores find out that they are to stop.
        connection.execute("CREATE TABLE jobstore_step (applied)")
        connection.execute("DROP TABLE jobstore_step")
        record = (step.name, step.checksum, self._clock())
        connection.execute("INSERT INTO migrations (name, checksum, applied_at) VALUES (?, ?, ?)", record)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done within, or nothing of it."""
    begin(connection, BUSY_DEADLINE)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        roll_back(connection)


def _apply(connection: sqlite3.Connection, step: Step) -> None:
    """Make a step's change, to be committed together with its record."""
    orphans = _count_orphans(connection)
    try:
        with _without_transactions(connection):
            step.apply(connection, split_statements)
    except Exception as error:
        raise _failure(step, error) from error
    if not connection.in_transaction:  # such as after an INSERT OR ROLLBACK, whose error the step has hidden
        raise SchemaMismatch(
            f"step {step.name} ended its transaction: what it did after remains; undo that and mend the step",
            (step.name,),
        )
    if made := _count_orphans(connection) - orphans:
        child, parent = next(iter(made))
        raise SchemaMismatch(
            f"step {step.name} was undone: it leaves rows of {child} whose {parent} does not exist", (step.name,)
        )


@contextlib.contextmanager
def _without_transactions(connection: sqlite3.Connection) -> Iterator[None]:
    """Refuse statements that would end the step's transaction or lead out of the database."""
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _NOT_FOR_STEPS else sqlite3.SQLITE_OK)
    try:
        yield
    finally:
        connection.set_authorizer(None)


def _read_applied(connection: sqlite3.Connection) -> list[AppliedMigration]:
    if not has_table(connection, "migrations"):
        return []
    if not has_column(connection, "migrations", "checksum"):
        raise SchemaMismatch("the database has a table `migrations` of another program: use another file")
    rows = connection.execute("SELECT name, checksum, applied_at FROM migrations ORDER BY name").fetchall()
    return [
        AppliedMigration(name=name, checksum=checksum, applied_at=from_milliseconds(at)) for name, checksum, at in rows
    ]


def _read_state(connection: sqlite3.Connection) -> tuple[list[AppliedMigration], bool]:
    return _read_applied(connection), _is_empty(connection)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _prepare_if_empty(connection: sqlite3.Connection) -> None:
    """Set what a new database keeps for good; auto_vacuum only takes effect before the first table and before WAL."""
    if _is_empty(connection):
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        execute_patiently(connection, "PRAGMA journal_mode=WAL", BUSY_DEADLINE)


def _count_orphans(connection: sqlite3.Connection) -> Counter[tuple[str, str]]:
    """Return how many rows lack their parent, by child and parent; a user's own tables may have had some before."""
    return Counter((child, parent) for child, _, parent, _ in connection.execute("PRAGMA foreign_key_check"))


def _failure(step: Step, error: Exception) -> DatabaseError:
    """Return what says why a step failed, and that it was undone."""
    reason = str(error) or type(error).__name__
    if isinstance(error, sqlite3.Error):
        meaning = translate(error)
        if not isinstance(meaning, StatementFailed):
            return meaning
        if getattr(error, "sqlite_errorname", None) == "SQLITE_AUTH":
            reason = "it would begin or end a transaction or attach a database, which is the runner's business"
    return SchemaMismatch(f"step {step.name} failed and was undone: {reason}", (step.name,))
