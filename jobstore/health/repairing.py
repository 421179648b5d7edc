"""Mends a database: in place while its pages are whole, else by saving every row that can still be read."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from jobstore.clock import Clock, system_clock
from jobstore.databases import PostgresDatabase, find_database, migrate_command
from jobstore.engines.sqlite import BUSY_DEADLINE, is_there
from jobstore.engines.sqlite_driver import RolledBack, begin, drive, roll_back, translate
from jobstore.errors import DatabaseBusy, DatabaseCorrupt, DatabaseNotFound, InvalidArgument, SchemaMismatch
from jobstore.files import create_private, refusal
from jobstore.health.checking import check, other_kind
from jobstore.health.checks.files import exposed
from jobstore.health.checks.pages import integrity_problems
from jobstore.health.checks.texts import damaged_texts, is_usable, orphaned_texts
from jobstore.health.mending import mend_identity, mend_records, mend_rows, mend_schema
from jobstore.health.report import Repair, Salvaged
from jobstore.health.running import open_texts
from jobstore.health.salvage.log import Log
from jobstore.health.salvage.rebuild import rebuild
from jobstore.health.schema import read_schema, steps_had
from jobstore.health.subject import DAMAGE, SQLiteSubject, looked_into_alone, silent
from jobstore.health.trash import put_aside, trash_of
from jobstore.migrate import Step, check_applied
from jobstore.migrate.files import back_up
from jobstore.operations.lost_texts import note_lost
from jobstore.operations.migrations import applied, store_id
from jobstore.outputs import FolderOutputs, Place, place_of
from jobstore.outputs.paths import MARKER, is_inside
from jobstore.ownership import DATABASE_FILES, Owner, exclusive, real
from jobstore.progress import Tell

_MENDABLE = re.compile(
    r"row \d+ missing from index|wrong # of entries in index|non-unique entry in index|CHECK constraint failed in"
    r"|rowid not at end-of-record|row \d+ of index"
)
"""What integrity_check says when pages are whole, and an index made anew or a value mended is all that is needed."""


def repair(
    url: str | os.PathLike[str] | None = None,
    *,
    outputs: str | os.PathLike[str] | None = None,
    clock: Clock = system_clock,
    tell: Tell = silent,
) -> Repair:
    """Mend a database that is in use by nobody, after a backup, and check it. It blocks.

    Leases that ended are rescued, rows that break a rule are mended, what is missing of the schema is made again,
    indexes are made anew, large texts that no row names are put into a trash folder, and rows whose text is missing
    or damaged note that. Of a damaged file every row that can be read is saved into a new one, which takes its place;
    the damaged file is kept. Killed at any point, the store is as it was before or after one of these steps.

    Args:
        url: As for `JobStore`.
        outputs: Where large texts lie, as for `JobStore`.
        clock: The present time in milliseconds.
        tell: Called as it goes on.

    Raises:
        DatabaseInUse: Somebody has the store open.
        SchemaMismatch: It is another program's, or of a newer version.
        DatabaseNotFound: There is no such database.
        DatabaseCorrupt: No row of it can be read. It stays as it was.
        DatabaseError: It cannot be written. What it was stays, or is kept.
        OutputError: The library for object storage is missing.

    Example:
        >>> repair("jobs.db").report.ok
        True
    """
    database = find_database(url)
    if isinstance(database, PostgresDatabase):
        raise InvalidArgument("repair", "is for SQLite files: PostgreSQL repairs itself; restore a pg_dump otherwise")
    command, steps, path = migrate_command(database), database.load(), real(database.path or Path())
    if not is_there(path):
        raise DatabaseNotFound(str(path), f"create it with `{command}`")
    place = place_of(outputs or database.outputs or "")
    open_texts(place, "", clock)  # before anything is mended
    with exclusive(path, "repair") as owner:
        work = _Work(owner, command, steps, place, clock, tell)
        work.mend_file()
        work.mend_texts()
        work.mend_permissions()
    report = check(url, outputs=outputs, clock=clock, tell=tell)
    return Repair(
        database=database.name,
        backup=work.backup,
        done=tuple(work.done),
        not_mended=tuple(work.not_mended),
        tables=tuple(work.tables),
        report=report,
    )


class _Work:
    """One repair, while its file is nobody else's.

    Args:
        owner: Of the file.
        command: What migrates it.
        steps: Of this version's schema.
        place: Where large texts lie.
        clock: The present time in milliseconds.
        tell: Called as it goes on.
    """

    def __init__(self, owner: Owner, command: str, steps: list[Step], place: Place, clock: Clock, tell: Tell) -> None:
        self.backup: Path | None = None
        self.done: list[str] = []
        self.not_mended: list[str] = []
        self.tables: list[Salvaged] = []
        self._owner = owner
        self._command = command
        self._path = owner.path
        self._steps = steps
        self._place = place
        self._clock = clock
        self._tell = tell

    def mend_file(self) -> None:
        """Mend the file in place; if that is not possible, save what can be read of it."""
        _undo_unfinished(self._path)
        self._refuse_others()
        problems = self._problems()
        # What is left of a damaged log is kept as well, which going on with the file would not do.
        log = Log.read(Path(f"{self._path}-wal"))
        is_whole = problems is not None and all(map(_MENDABLE.search, problems))
        if is_whole and not log.lost_commits and not log.is_cut:
            self.backup = back_up(self._path, "repair")
            with contextlib.suppress(DatabaseCorrupt):
                self._mend_in_place(rebuilds_indexes=bool(problems))
                return
            self.done.append(f"backup before it was found that the file is damaged: {self.backup}")
        self._salvage()

    def mend_texts(self) -> None:
        """Note in the rows which texts are lost, and put aside the files that none names."""
        with _opened(self._path) as connection:
            subject = SQLiteSubject(self._path, connection, self._steps, self._clock, self._tell)
            texts = open_texts(self._place, subject.read(store_id), self._clock)
            if not isinstance(texts, FolderOutputs):
                self.not_mended.append("large texts in object storage were not looked at")
                return
            if not is_usable(texts):
                return  # perhaps its disk is not mounted: nothing is lost yet
            damaged = list(damaged_texts(subject, texts))
            if damaged:
                with _transaction(connection):
                    jobs = sum(drive(connection, note_lost(self._clock(), *damage)) for damage in damaged)
                self.done.append(f"large texts that are lost: {len(damaged):,}; jobs in which that was noted: {jobs:,}")
            orphans = [path for paths in orphaned_texts(subject, texts) for path in paths]
            # What is damaged may still be worth something; and what lies outside is none of ours.
            moved = put_aside(texts, [*orphans, *(path for path, _ in damaged if is_inside(path))])
        if moved:
            self.done.append(f"files that were put aside into {trash_of(texts)}: {moved:,}")

    def mend_permissions(self) -> None:
        """Let nobody but the owner use the files."""
        texts = open_texts(self._place, "", self._clock)
        for place, mode in list(exposed(self._path, texts)):
            if place == self._path.parent:
                self.not_mended.append(f"{place} can be written by everyone: that is for its owner to change")
                continue
            try:
                place.chmod(mode & 0o700)
            except OSError as error:
                self.not_mended.append(f"{place} can be used by others: {error.strerror}")
            else:
                self.done.append(f"{place}: for its owner alone")

    def _refuse_others(self) -> None:
        """Refuse a file that is whole, but not a store that this version knows.

        Raises:
            SchemaMismatch: It is such a file.
        """
        with looked_into_alone(self._path) as connection:
            found = other_kind(connection, self._steps, self._command)
            if found is not None:
                raise SchemaMismatch(f"{found.summary}: {found.remedy}")
            with contextlib.suppress(*DAMAGE, DatabaseCorrupt):
                subject = SQLiteSubject(self._path, connection, self._steps, self._clock, self._tell)
                check_applied(self._steps, subject.read(applied))

    def _problems(self) -> list[str] | None:
        """Return what is wrong with the pages; None if that cannot even be told.

        Raises:
            DatabaseBusy: A program that knows nothing of the owner's lock keeps all others out.
        """
        try:
            with looked_into_alone(self._path) as connection:
                return integrity_problems(connection)
        except DAMAGE as error:
            if isinstance(meaning := translate(error), DatabaseBusy):
                raise meaning from error
            return None

    def _mend_in_place(self, *, rebuilds_indexes: bool) -> None:
        """Mend everything in one transaction.

        Raises:
            DatabaseCorrupt: The file is damaged after all. Nothing was changed.
        """
        now, done = self._clock(), []
        with _opened(self._path) as connection, _transaction(connection):
            recorded = {record.name for record in drive(connection, applied(now))}
            steps = steps_had(self._steps, recorded, read_schema(connection)) or self._steps
            mended = mend_schema(connection, steps, now)
            done += mended.done
            if rebuilds_indexes:
                connection.execute("REINDEX")
                done.append("all indexes: made anew")
            done += mend_records(connection, steps, now)
            done += mend_identity(connection, self._known_identity())
            rows = mend_rows(connection, steps, now)
            _require_whole(connection)
        self.done += [*done, *rows.done]
        self.not_mended += [*mended.not_mended, *rows.not_mended]

    def _salvage(self) -> None:
        """Save every row that can be read into a new file, and let it take the place of the damaged one."""
        target = Path(f"{self._path}.repairing")
        try:
            _remove(target)  # of a repair that was killed
            create_private(target)
            saved = rebuild(self._path, target, self._steps, self._known_identity(), self._clock(), self._tell)
            _require_rows(saved.tables, self._path)
            with looked_into_alone(target) as connection:
                _require_whole(connection)
            kept = _free_name(self._path)
            self._owner.swap([*self._owner.aside(kept), (target, self._path)])
        except BaseException as error:
            if not self._owner.is_swapping:  # else whoever opens it next goes on, and needs the new file
                _remove(target)
            if (meaning := _meaning(target, error)) is None:
                raise
            raise meaning from error
        self.backup = kept
        self.tables += saved.tables
        self.done += ["the file was damaged: what could be read of it was saved into a new one", *saved.done]
        self.not_mended += saved.not_mended

    def _known_identity(self) -> str | None:
        """Return which store it is, as its outputs folder says."""
        if not isinstance(self._place, Path):
            return None
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._place / MARKER).read_text(encoding="utf-8").strip() or None
        return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database to mend it: what it may not hold is mended, not refused."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("PRAGMA ignore_check_constraints=ON")
        yield connection
    except RolledBack as reason:
        raise reason.error from reason.__cause__
    except sqlite3.Error as error:
        raise translate(error) from error
    except UnicodeDecodeError:
        raise DatabaseCorrupt("the database is damaged (names that are no text): restore a backup") from None
    finally:
        connection.close()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    begin(connection, BUSY_DEADLINE)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        roll_back(connection)


def _undo_unfinished(path: Path) -> None:
    """Undo what a program had begun that was killed, if a journal of it is left, as every opening does."""
    if Path(f"{path}-journal").exists():
        with contextlib.suppress(*DAMAGE), contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchall()


def _meaning(path: Path, error: BaseException) -> BaseException | None:
    """Return the error of this package for one that ended the making of a file; None if it is one already."""
    if isinstance(error, OSError):
        return refusal(path, error)
    if isinstance(error, RolledBack):
        return error.error
    return translate(error) if isinstance(error, sqlite3.Error) else None


def _require_whole(connection: sqlite3.Connection) -> None:
    """Check all that SQLite can check.

    Raises:
        DatabaseCorrupt: Something is still wrong.
    """
    connection.execute("PRAGMA ignore_check_constraints=OFF")  # or they would not be checked
    if problems := integrity_problems(connection):
        raise DatabaseCorrupt(f"the database is damaged ({problems[0]}): restore a backup")


def _require_rows(tables: list[Salvaged], path: Path) -> None:
    """Check that anything at all was saved: an empty store in the place of some other file would mend nothing.

    Raises:
        DatabaseCorrupt: Nothing was.
    """
    if not any(table.saved for table in tables):
        raise DatabaseCorrupt(f"no row of a store can be read in {path}: check the path, or restore a backup")


def _free_name(path: Path) -> Path:
    """Return a name for a damaged file that is kept, which says when."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    kept, number = path.with_name(f"{path.name}.backup-{moment}-damaged"), 1
    while any(Path(f"{kept}{end}").exists() for end in DATABASE_FILES):
        kept, number = path.with_name(f"{path.name}.backup-{moment}-damaged-{number}"), number + 1
    return kept


def _remove(path: Path) -> None:
    for end in DATABASE_FILES:
        Path(f"{path}{end}").unlink(missing_ok=True)
