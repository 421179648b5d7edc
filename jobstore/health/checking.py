"""Checks a database and its large texts, without changing anything, beside whatever works on them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jobstore.clock import Clock, from_milliseconds, system_clock
from jobstore.databases import Database, PostgresDatabase, find_database, migrate_command
from jobstore.engines.sqlite import is_there
from jobstore.errors import DatabaseError, DatabaseInUse, DatabaseNotFound
from jobstore.health.checks import FILE_CHECKS, SQLITE_CHECKS
from jobstore.health.report import Finding, Report, bad
from jobstore.health.running import open_texts, run_checks
from jobstore.health.salvage.log import Log
from jobstore.health.schema import read_schema, wanted_schema
from jobstore.health.subject import DAMAGE, SQLiteSubject, has_log, looked_into, silent
from jobstore.migrate import Step, recognise
from jobstore.operations.migrations import store_id
from jobstore.outputs import Place, place_of
from jobstore.ownership import exclusive, real, shared
from jobstore.progress import Tell

T = TypeVar("T")


def check(
    url: str | os.PathLike[str] | None = None,
    *,
    outputs: str | os.PathLike[str] | None = None,
    quick: bool = False,
    clock: Clock = system_clock,
    tell: Tell = silent,
) -> Report:
    """Check a database and its large texts. It changes nothing, and it blocks: call it in a thread, or in a script.

    Programs that use the store may go on meanwhile. It works on a copy that cannot be written, too.

    Args:
        url: As for `JobStore`.
        outputs: Where large texts lie, as for `JobStore`.
        quick: Leave out what takes longer for a larger database; the rest takes less than a second.
        clock: The present time in milliseconds.
        tell: Called as it goes on.

    Raises:
        InvalidArgument: An argument cannot be accepted.
        OutputError: The library for object storage is missing.
        DatabaseNotFound: There is no such database.
        DatabaseInUse: Somebody has had it to itself for 30 s, to restore it or the like.
        DatabaseError: Its file cannot be opened.

    Example:
        >>> for finding in check("jobs.db").failed:
        ...     print(finding.summary, finding.remedy)
    """
    database = find_database(url)
    steps = database.load()
    place = outputs or database.outputs
    found = None if place is None else place_of(place)
    if isinstance(database, PostgresDatabase):
        from jobstore.health.postgres import check_postgres  # noqa: PLC0415 - needs the extra

        findings = check_postgres(database, steps, found, clock, tell, quick=quick)
    else:
        findings = _check_file(database, steps, found, clock, tell, quick=quick)
    return Report(database=database.name, checked_at=from_milliseconds(clock()), quick=quick, findings=tuple(findings))


def _check_file(
    database: Database, steps: list[Step], place: Place | None, clock: Clock, tell: Tell, *, quick: bool
) -> list[Finding]:
    path = real(database.path or Path())
    command = migrate_command(database)
    log = None if quick else _read_log(path)
    with shared(path):  # nobody swaps the file meanwhile; a swap that was interrupted is finished first
        if not is_there(path):
            raise DatabaseNotFound(str(path), f"create it with `{command}`")
        look = _Look(path, command, steps, place, clock, tell, log, quick=quick)
        return look.findings()


class _Look:
    """One look at a file, as a whole.

    Args:
        path: The file, links resolved.
        command: What migrates it.
        steps: Of this version's schema.
        place: Where its large texts lie.
        clock: The present time in milliseconds.
        tell: Called as it goes on.
        log: What the log held while nobody used it; None if somebody did.
        quick: Leave out what takes longer for a larger database.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        steps: list[Step],
        place: Place | None,
        clock: Clock,
        tell: Tell,
        log: Log | None,
        *,
        quick: bool,
    ) -> None:
        self._path = path
        self._command = command
        self._steps = steps
        self._place = place
        self._clock = clock
        self._tell = tell
        self._log = log
        self._quick = quick

    def findings(self) -> list[Finding]:
        """Look without a trace where nobody writes; as an ordinary reader if somebody does, or began to meanwhile."""
        if not has_log(self._path):
            before = self._path.stat()
            found = self._with_connection(self._all, immutable=True)
            after = self._path.stat()
            if not has_log(self._path) and (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino):
                return found
        elif not self._with_connection(_can_read_log, immutable=False):
            return [*self._with_connection(self._all, immutable=True), _log_left_out(self._path)]
        return self._with_connection(self._all, immutable=False)

    def _with_connection(self, act: Callable[[sqlite3.Connection], T], *, immutable: bool) -> T:
        with looked_into(self._path, immutable=immutable) as connection:
            return act(connection)

    def _all(self, connection: sqlite3.Connection) -> list[Finding]:
        if (other := other_kind(connection, self._steps, self._command)) is not None:
            return [other]
        subject = SQLiteSubject(self._path, connection, self._steps, self._clock, self._tell, self._log)
        subject.texts = open_texts(self._place, _identity(subject), self._clock)
        checks = SQLITE_CHECKS if _is_readable(connection) else FILE_CHECKS
        # A file of which nothing can be read is soon looked through, and to say so is what is asked for.
        chosen = [entry for entry in checks if entry.quick or not self._quick or checks is FILE_CHECKS]
        return run_checks(subject, chosen, self._tell)


def other_kind(connection: sqlite3.Connection, steps: list[Step], command: str) -> Finding | None:
    """Return what is said of a file that is whole, but no store; None if it is one, or damaged.

    Args:
        connection: Reads it.
        steps: Of this version's schema.
        command: What migrates the file.
    """
    try:
        tables, old = read_schema(connection).tables, recognise(connection)
    except DAMAGE:
        return None
    if old is not None:
        what = "this is a database of the old system, which was not adopted yet"
        return bad("kind", what, f"run `{command}`: it makes a backup, and turns the file into a store")
    if tables and not tables.keys() & wanted_schema(steps).tables.keys():
        return bad("kind", "this is a database, but none of jobstore", "check the path")
    return None


def _read_log(path: Path) -> Log | None:
    """Return what the log holds; None if somebody uses the database, or it cannot be read."""
    log = Path(f"{path}-wal")
    if not os.path.lexists(log):  # so what is no store gets no lock's file beside it
        return Log()
    with contextlib.suppress(OSError):
        try:
            with exclusive(path, "check"):  # for a moment: those who open it meanwhile try again
                return Log.read(log)
        except DatabaseInUse:
            return None
        except DatabaseError:  # in a folder that cannot be written nobody writes
            return Log.read(log)
    return None


def _is_readable(connection: sqlite3.Connection) -> bool:
    """Whether at least the schema can be read."""
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    except DAMAGE:
        return False
    return True


def _can_read_log(connection: sqlite3.Connection) -> bool:
    """Whether the log can be read, for which its index may have to be made beside it."""
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except DAMAGE as error:
        return getattr(error, "sqlite_errorname", "") not in {
            "SQLITE_CANTOPEN",
            "SQLITE_READONLY_CANTINIT",
            "SQLITE_READONLY_RECOVERY",
            "SQLITE_READONLY_DIRECTORY",
            "SQLITE_READONLY_ROLLBACK",
        }
    return True


def _log_left_out(path: Path) -> Finding:
    if Path(f"{path}-journal").exists():
        return bad(
            "journal",
            "a program was killed while it wrote, and what it had begun was not undone yet",
            "run `jobstore check --repair`, or open the store: both undo it first",
        )
    return bad(
        "log-reading",
        "the log beside the file cannot be read in a folder that cannot be written: what it holds was left out",
        f"copy {path.name} and {path.name}-wal into a folder that can be written, and check them there",
    )


def _identity(subject: SQLiteSubject) -> str:
    """Return which store it is; empty if that cannot be read."""
    try:
        return subject.read(store_id)
    except Exception:  # noqa: BLE001 - the check of it says why
        return ""
