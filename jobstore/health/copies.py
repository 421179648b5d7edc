"""What making and restoring backups have in common: databases that nobody changes, and the texts that they name."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from jobstore.clock import system_clock
from jobstore.databases import Database
from jobstore.engines import sqlite_driver as driver
from jobstore.engines.sqlite import is_there
from jobstore.errors import (
    DatabaseCorrupt,
    DatabaseNotFound,
    InvalidArgument,
    OutputError,
    SchemaMismatch,
    StatementFailed,
)
from jobstore.files import refusal
from jobstore.migrate.files import look
from jobstore.models import Text
from jobstore.operations import jobs, migrations, promotion
from jobstore.operations.promotion import FILES, TextFile
from jobstore.outputs import Outputs
from jobstore.outputs.folder import FolderOutputs
from jobstore.ownership import DATABASE_FILES, real
from jobstore.progress import Progress
from jobstore.promotion.copying import copy_text
from jobstore.promotion.pair import Report, is_whole, some
from jobstore.sql import Operation

T = TypeVar("T")

ASKED_AT_ONCE = 500


class Found(NamedTuple):
    """What a look at texts has found."""

    texts: int
    bytes: int
    damaged: list[str]
    """Paths of those that are missing, or are not what their rows say."""


def file_of(database: Database, verb: str) -> Path:
    """Return where the file of a database really lies.

    Raises:
        InvalidArgument: It has none: it is on a server.
    """
    if database.path is None:
        name = database.name
        raise InvalidArgument(
            "url",
            f"PostgreSQL's own tools {verb} {name}: `pg_dump --format=custom --file=jobs.dump --dbname='{name}'`, then "
            f"`pg_restore --clean --if-exists --dbname='{name}' jobs.dump`; copy the place of its large texts as well. "
            "Or copy all of it into a file with `jobstore promote`",
        )
    return real(database.path)


def moment() -> str:
    """Return the present time as it stands in names of files."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def ask(path: Path, operation: Operation[T]) -> T:
    """Let an operation read a database, leaving no trace beside it."""
    return look(path, lambda connection: driver.read(connection, operation))


def store_id(path: Path) -> str:
    """Return what the store in a file calls itself.

    Raises:
        DatabaseNotFound: There is no such file.
        SchemaMismatch: It is no store of ours.
        DatabaseError: It cannot be read.
    """
    if not is_there(path):
        raise DatabaseNotFound(str(path), "name the file of a database")
    try:
        found = ask(path, migrations.store_id(system_clock()))
    except StatementFailed as error:
        raise SchemaMismatch(f"{path} is a database of another program, or empty: name another file") from error
    return found


def check_integrity(path: Path, source: Path) -> None:
    """Read all of a copy of a database, and compare its tables with its indexes.

    Args:
        path: The copy.
        source: What it was made of, which is what is damaged.

    Raises:
        DatabaseCorrupt: It is damaged.
    """
    try:
        (verdict,) = look(path, lambda connection: connection.execute("PRAGMA integrity_check(1)").fetchone())
    except DatabaseCorrupt as error:
        verdict = str(error.__cause__)
    if verdict != "ok":
        reason = verdict.splitlines()[-1]
        raise DatabaseCorrupt(f"{source} is damaged ({reason}): use another copy, or run `jobstore check --repair`")


def each_text(path: Path, work: Callable[[TextFile], None]) -> None:
    """Do something with each large text that rows of a database name, which nobody changes meanwhile."""
    look(path, lambda connection: _each_text(connection, work))


def copy_texts(path: Path, source: Outputs, target: Outputs, report: Report) -> list[str]:
    """Copy the large texts that a database names, unless they are there already.

    Within a file system they get a second name instead, except those that may still grow.

    Returns:
        Those that are missing or damaged in the source.

    Raises:
        OutputError: The whole source is away, or the target refuses.
    """
    missing: list[str] = []
    step = counted(report, "copying large texts", ask(path, promotion.count_files(0)))

    def copy(file: TextFile) -> None:
        if not (_is_linked(file, source, target) or copy_text(file, source, target)):
            missing.append(file.path)
        step()

    each_text(path, copy)
    if isinstance(target, FolderOutputs):
        target.sync()
    return missing


def check_texts(path: Path, outputs: Outputs, report: Report) -> Found:
    """Read back all large texts that a database names, and compare them with what their rows say."""
    damaged: list[str] = []
    texts = size = 0
    step = counted(report, "reading large texts back", ask(path, promotion.count_files(0)))

    def check(file: TextFile) -> None:
        nonlocal texts, size
        text = _measured(outputs, file.path)
        if text is not None and is_whole(text, file):
            texts, size = texts + 1, size + (text.size or 0)
        else:
            damaged.append(file.path)
        step()

    each_text(path, check)
    return Found(texts, size, damaged)


def named_of(path: Path, paths: list[str]) -> set[str]:
    """Return those of the paths of large texts that rows of a database name."""
    named: set[str] = set()
    for start in range(0, len(paths), ASKED_AT_ONCE):
        named |= ask(path, jobs.file_paths_named(0, paths[start : start + ASKED_AT_ONCE]))
    return named


def telling(report: Report) -> Callable[[int, int], None]:
    """Return what reports how much of a database is copied."""
    return lambda done, total: report(Progress("copying the database", done, total))


def counted(report: Report, stage: str, total: int) -> Callable[[], None]:
    """Report that a stage begins; return what reports that one more is done."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        report(Progress(stage, done, total))

    report(Progress(stage, 0, total))
    return step


def refuse_damaged(damaged: list[str], where: str) -> None:
    """Refuse what lacks large texts.

    Raises:
        OutputError: It does.
    """
    if damaged:
        raise OutputError(
            f"{len(damaged)} large texts are missing or damaged in {where} ({some(damaged)}): "
            "choose another backup, or go on without them with --leave-damaged",
            damaged[0],
        )


def remove(*paths: Path) -> None:
    """Remove files and folders with all that is in them, as far as they are there.

    Raises:
        DatabaseError: One cannot be removed.
    """
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(path, error) from error


def remove_database(path: Path) -> None:
    """Remove a database that nobody has open, with what SQLite and we put beside it."""
    remove(*(Path(f"{path}{end}") for end in (*DATABASE_FILES, ".owner", ".checkpoint.lock")))


def _each_text(connection: sqlite3.Connection, work: Callable[[TextFile], None]) -> None:
    for number in range(len(FILES)):
        after = ""
        while found := driver.read(connection, promotion.files(0, number, after)):
            for file in found:
                work(file)
            after = found[-1].path


def _is_linked(file: TextFile, source: Outputs, target: Outputs) -> bool:
    """Try to give a text a second name; one without a hash may still grow, and is copied."""
    if file.sha256 is None or not isinstance(source, FolderOutputs) or not isinstance(target, FolderOutputs):
        return False
    try:
        return target.size(file.path) is None and target.link_in(file.path, source)
    except OutputError:
        return False


def _measured(outputs: Outputs, path: str) -> Text | None:
    try:
        return outputs.measure(path)
    except OutputError:
        return None
