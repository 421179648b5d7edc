"""Applies pending steps to an SQLite database: each with its record in one transaction, after a backup."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jobstore.clock import from_milliseconds, system_clock
from jobstore.engines.sqlite import connect_writer
from jobstore.engines.sqlite_driver import begin, roll_back, translate
from jobstore.errors import DatabaseNotFound, SchemaMismatch
from jobstore.migrate.steps import Step, check_applied, load_steps, pending_steps
from jobstore.models import AppliedMigration

BUSY_DEADLINE = 60.0
"""Seconds: another migrator may be at a long step."""

_RECORDS = """
    CREATE TABLE IF NOT EXISTS migrations (
        name TEXT NOT NULL PRIMARY KEY,
        checksum TEXT NOT NULL,
        applied_at INTEGER NOT NULL
    ) STRICT
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a migration did."""

    applied: list[str]
    """Names of the steps that it applied."""
    backup: Path | None
    """The copy that it made before, of a database that held anything."""


class Migrator:
    """Brings one SQLite file up to date.

    Args:
        path: The file; it is created if there is none.
        steps: What to apply, in order; by default the steps of this version.
        clock: The present time in milliseconds.

    Example:
        >>> Migrator(Path("jobs.db")).run()
    """

    def __init__(
        self, path: Path, steps: Sequence[Step] | None = None, clock: Callable[[], int] = system_clock
    ) -> None:
        self._path = path
        self._steps = load_steps() if steps is None else list(steps)
        self._clock = clock

    def status(self) -> tuple[list[AppliedMigration], list[Step]]:
        """Return what was applied and what is pending. Only reads.

        Raises:
            DatabaseError: The file cannot be read, or does not fit this version.
        """
        if not self._path.exists():
            return [], list(self._steps)
        connection = self._connect()
        try:
            applied = self._read_applied(connection)
        finally:
            connection.close()
        return applied, pending_steps(self._steps, applied)

    def run(self, announce: Callable[[Step], None] = lambda _: None) -> Result:
        """Apply what is pending, after a backup of what is there.

        Args:
            announce: Called with each step before it is applied.

        Raises:
            DatabaseError: A step failed, and was undone; those before it remain. Or the file does not fit.
        """
        _, pending = self.status()
        if not pending:
            return Result([], None)
        _create_private(self._path)
        connection = self._connect()
        try:
            backup = self._back_up(connection)
            _make_ready(connection)
            applied = [step.name for step in self._steps if self._apply(connection, step, announce)]
        finally:
            connection.close()
        return Result(applied, backup)

    def _connect(self) -> sqlite3.Connection:
        connection = connect_writer(self._path, "full")
        try:
            # Before any transaction, where it would be a silent no-op. See the guide: dropping a table that is
            # rebuilt would delete its children's rows.
            connection.execute("PRAGMA foreign_keys=OFF")
        except sqlite3.Error as error:
            connection.close()
            raise translate(error) from error
        return connection

    def _read_applied(self, connection: sqlite3.Connection) -> list[AppliedMigration]:
        try:
            recorded = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'migrations'").fetchone()
            sql = "SELECT name, checksum, applied_at FROM migrations ORDER BY name"
            rows = connection.execute(sql).fetchall() if recorded else []
        except sqlite3.Error as error:
            raise translate(error) from error
        applied = [
            AppliedMigration(name=name, checksum=checksum, applied_at=from_milliseconds(at))
            for name, checksum, at in rows
        ]
        check_applied(self._steps, applied)
        return applied

    def _back_up(self, connection: sqlite3.Connection) -> Path | None:
        """Copy a database that holds anything to a file beside it, durably, and return its path."""
        if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None:
            return None
        target = _free_name(self._path)
        try:
            copy = sqlite3.connect(target)
            try:
                connection.backup(copy)  # in one step: between several, another's write would start it anew
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise translate(error) from error
        _sync_folder(target.parent)
        return target

    def _apply(self, connection: sqlite3.Connection, step: Step, announce: Callable[[Step], None]) -> bool:
        """Apply a step unless it is applied; asked within the transaction, because another migrator may have."""
        begin(connection, BUSY_DEADLINE)
        try:
            connection.execute(_RECORDS)
            if step not in pending_steps(self._steps, self._read_applied(connection)):
                return False
            announce(step)
            step.apply(connection)
            violation = connection.execute("PRAGMA foreign_key_check").fetchone()
            if violation is not None:
                raise SchemaMismatch(
                    f"step {step.name} leaves rows of {violation[0]} without {violation[2]}", (step.name,)
                )
            record = (step.name, step.checksum, self._clock())
            connection.execute("INSERT INTO migrations (name, checksum, applied_at) VALUES (?, ?, ?)", record)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise SchemaMismatch(f"step {step.name} failed and was undone: {error}", (step.name,)) from error
        finally:
            roll_back(connection)
        return True


def _create_private(path: Path) -> None:
    """Create an empty file that only its owner can read; SQLite's own files inherit that."""
    if not path.parent.is_dir():
        raise DatabaseNotFound(str(path), f"the folder {path.parent} does not exist")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise DatabaseNotFound(str(path), f"it cannot be created: {error.strerror}") from error


def _make_ready(connection: sqlite3.Connection) -> None:
    """Set what a database keeps for good; auto_vacuum only takes effect before the first table and before WAL."""
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
    except sqlite3.Error as error:
        raise translate(error) from error


def _free_name(path: Path) -> Path:
    """Reserve a name for a backup beside the database."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    number = 0
    while True:
        target = path.with_name(f"{path.name}.backup-{moment}" + (f"-{number}" if number else ""))
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            number += 1
        else:
            return target


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder; its file systems log the names themselves
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
