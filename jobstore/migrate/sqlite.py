"""Applies pending steps to an SQLite database: each with its record in one transaction, after a backup."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobstore.clock import Clock, from_milliseconds, system_clock
from jobstore.engines.sqlite import connect_writer, is_there
from jobstore.engines.sqlite_driver import begin, execute_patiently, roll_back, translate
from jobstore.errors import DatabaseError, DiskFailed, SchemaMismatch, StatementFailed
from jobstore.files import create_private
from jobstore.migrate.adoption import (
    REPORT_KEY,
    Adoption,
    Conversion,
    Intent,
    Nowhere,
    OutputsOnDemand,
    Texts,
    read_report,
    recognise,
)
from jobstore.migrate.files import back_up, copy_into, look
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
from jobstore.outputs import Outputs, Place, open_outputs
from jobstore.ownership import Share, real, shared

BUSY_DEADLINE = 60.0
"""Seconds: another migrator may be at a long step."""
COMPACT_DEADLINE = 5.0
"""Seconds: others may be reading; what is left undone then can be done at any time."""

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
        place: Where large texts are to lie of a database of the old system, when it is adopted; by default in
            `<database file>.outputs`.

    Example:
        >>> Migrator(Path("jobs.db")).run()
    """

    def __init__(
        self,
        path: Path,
        steps: Sequence[Step] | None = None,
        clock: Clock = system_clock,
        place: Place | None = None,
    ) -> None:
        self._path = path
        self._place = Path(f"{path}.outputs") if place is None else place
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

        A database of the old system is adopted: in one transaction it gets all steps, and its rows become ours. Stop
        the programs that use it before.

        Args:
            announce: Called with each step before it is applied.
            backed_up: Called with the path of the backup once it is made.

        Raises:
            DatabaseInUse: Somebody has the file to itself, to restore it or the like.
            DatabaseError: A step failed, and was undone; those before it remain. Or the file does not fit.
            OutputError: The outputs of a database that is adopted cannot be written, or are another store's.
        """
        if not self.status().pending:
            Intent(self._path).forget()  # of an adoption that was killed right after its commit
            return Result([], None)
        try:
            # Others may have it open, but nobody swaps the file meanwhile.
            with shared(self._path) as share, contextlib.closing(_connect(self._path)) as connection:
                _prepare_if_empty(connection)
                connection.execute("PRAGMA busy_timeout=0")  # our own, fairer retry takes over
                adopted = self._adopt(connection, share, announce, backed_up)
                return adopted or self._apply_all(connection, share, announce, backed_up)
        except sqlite3.Error as error:
            raise translate(error) from error

    def rehearse(self) -> Adoption | None:
        """Return what adopting a database of the old system would find and do; None if it is another.

        It is done on a copy, which is thrown away. Neither the database nor the outputs are changed.

        Raises:
            DatabaseError: It cannot be read or adopted, or there is no room for the copy.
        """
        if not is_there(self._path) or look(self._path, recognise) is None:
            return None
        try:
            with tempfile.TemporaryDirectory(prefix="jobstore-") as folder:
                copy = Path(folder, "copy.db")
                look(self._path, lambda source: copy_into(source, copy))
                return self._convert_for_show(copy)
        except OSError as error:
            raise DiskFailed(f"the copy for the rehearsal cannot be made: {error.strerror}") from error

    def adoption(self) -> Adoption | None:
        """Return the report of the adoption that made this store, if it was made so.

        Raises:
            DatabaseError: It cannot be read.
        """
        return look(self._path, _read_report) if is_there(self._path) else None

    def _adopt(
        self,
        connection: sqlite3.Connection,
        share: Share,
        announce: Callable[[Step], None],
        backed_up: Callable[[Path], None],
    ) -> Result | None:
        """Turn a database of the old system into a store; None if it is none, or none any more."""
        if recognise(connection) is None:
            return None
        intent = Intent(self._path)
        with _transaction(connection):
            conversion = self._begin_conversion(connection)
            if conversion is None:  # another migrator was here meanwhile
                return None
            share.keep()
            backup = back_up(self._path, "migration")  # which does not see what is not committed
            backed_up(backup)
            self._make_schema(connection, announce)
            destination = OutputsOnDemand(lambda: self._claim_outputs(connection, intent))
            adoption = conversion.convert(Texts(destination, self._path))
        intent.forget()
        return Result([step.name for step in self._steps], backup, adoption, _make_like_new(connection))

    def _convert_for_show(self, copy: Path) -> Adoption | None:
        try:
            with contextlib.closing(_connect(copy)) as connection:
                connection.execute("BEGIN IMMEDIATE")  # for nothing: it is never committed
                conversion = self._begin_conversion(connection)
                self._make_schema(connection, lambda _: None)
                return None if conversion is None else conversion.convert(Texts(Nowhere(), self._path))
        except sqlite3.Error as error:
            raise translate(error) from error

    def _begin_conversion(self, connection: sqlite3.Connection) -> Conversion | None:
        old = recognise(connection)
        if old is None:
            return None
        conversion = Conversion(connection, old, self._clock())
        conversion.put_aside(_names_made_by(self._steps))
        return conversion

    def _make_schema(self, connection: sqlite3.Connection, announce: Callable[[Step], None]) -> None:
        for step in self._steps:
            announce(step)
            self._record(connection, step)
            _execute(connection, step)

    def _claim_outputs(self, connection: sqlite3.Connection, intent: Intent) -> Outputs:
        """Open the outputs of the store that is being made; those that a killed adoption began are this one's."""
        begun = intent.read()
        if begun is not None:
            connection.execute("UPDATE store_identity SET store_id = ?", (begun,))
        [(store_id,)] = connection.execute("SELECT store_id FROM store_identity").fetchall()
        if begun is None:
            intent.write(store_id)
        return open_outputs(self._place, store_id, self._clock)

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
                    backup = back_up(self._path, "migration")  # which does not see what is not committed
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


def _connect(path: Path) -> sqlite3.Connection:
    create_private(real(path))
    connection = connect_writer(path, "full")
    # Before any transaction, where it would be a silent no-op. See the guide: dropping a table that is
    # rebuilt would delete its children's rows.
    connection.execute("PRAGMA foreign_keys=OFF")
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done within, or nothing of it."""
    begin(connection, BUSY_DEADLINE)
    try:
        yield
        execute_patiently(connection, "COMMIT", BUSY_DEADLINE)  # without a log, readers may be in its way
    finally:
        roll_back(connection)


def _apply(connection: sqlite3.Connection, step: Step) -> None:
    """Make a step's change, to be committed together with its record."""
    orphans = _count_orphans(connection)
    _execute(connection, step)
    if made := _count_orphans(connection) - orphans:
        child, parent = next(iter(made))
        raise SchemaMismatch(
            f"step {step.name} was undone: it leaves rows of {child} whose {parent} does not exist", (step.name,)
        )


def _execute(connection: sqlite3.Connection, step: Step) -> None:
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


def _names_made_by(steps: Sequence[Step]) -> set[str]:
    """Return the names of all that a new database has, in small letters."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(RECORDS)
        connection.execute("BEGIN")
        for step in steps:
            _execute(connection, step)
        names = connection.execute("SELECT lower(name) FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {name for (name,) in names}


def _make_like_new(connection: sqlite3.Connection) -> str | None:
    """Give an adopted database what a new one has, auto_vacuum and a log; return why that was not possible.

    That takes a VACUUM, which needs as much room again and the database for itself, and so cannot be a part of the
    adoption. It gives back the room that the old tables took.
    """
    try:
        execute_patiently(connection, "PRAGMA temp_store=FILE", COMPACT_DEADLINE)  # the whole database is written there
        execute_patiently(connection, "PRAGMA auto_vacuum=INCREMENTAL", COMPACT_DEADLINE)
        execute_patiently(connection, "VACUUM", COMPACT_DEADLINE)
        execute_patiently(connection, "PRAGMA journal_mode=WAL", COMPACT_DEADLINE)
    except DatabaseError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _without_transactions(connection: sqlite3.Connection) -> Iterator[None]:
    """Refuse statements that would end the step's transaction or lead out of the database."""
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in _NOT_FOR_STEPS else sqlite3.SQLITE_OK)
    try:
        yield
    finally:
        connection.set_authorizer(None)


def _read_applied(connection: sqlite3.Connection) -> list[AppliedMigration]:
    if not has_table(connection, "migrations") or recognise(connection) is not None:
        return []
    if not has_column(connection, "migrations", "checksum"):
        raise SchemaMismatch("the database has a table `migrations` of another program: use another file")
    rows = connection.execute("SELECT name, checksum, applied_at FROM migrations ORDER BY name").fetchall()
    return [
        AppliedMigration(name=name, checksum=checksum, applied_at=from_milliseconds(at)) for name, checksum, at in rows
    ]


def _read_state(connection: sqlite3.Connection) -> tuple[list[AppliedMigration], bool]:
    return _read_applied(connection), _is_empty(connection)


def _read_report(connection: sqlite3.Connection) -> Adoption | None:
    if recognise(connection) is not None or not has_table(connection, "key_value_store"):
        return None
    row = connection.execute("SELECT value FROM key_value_store WHERE key = ?", (REPORT_KEY,)).fetchone()
    return None if row is None else read_report(row[0])


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
