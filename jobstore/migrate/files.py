"""What a migration does with files: look into a database, copy one before it is changed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from jobstore.engines.sqlite_driver import translate
from jobstore.files import create_private, sync_folder

T = TypeVar("T")

COPIED_PAGES = 2048
"""Between two reports on a copy: 8 MiB of the usual pages."""


def look(path: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    """Let a function read a database, leaving no trace in it or beside it.

    Raises:
        DatabaseError: It cannot be read.
    """
    logs = (Path(f"{path}-wal"), Path(f"{path}-journal"))
    if not any(log.exists() for log in logs):
        # Nothing but the file: so it can be read as what never changes. An ordinary reader would leave a log and
        # its index behind. Should a writer come at this very moment, the second look is the one that counts.
        with contextlib.suppress(sqlite3.Error):
            return _look(path, "mode=ro&immutable=1", read)
    try:
        return _look_ordinarily(path, read)
    except sqlite3.Error as error:
        raise translate(error) from error


def back_up(path: Path, before: str) -> Path:
    """Copy what is committed in a database to a new file beside it, durably, and return the copy's path.

    Args:
        path: The database.
        before: What is about to be done to it; a part of the copy's name.

    Raises:
        DatabaseError: It cannot be written. What was begun is removed.
    """
    target = _new_backup(path, before)
    try:
        copy_database(path, target)
        sync_folder(target.parent)
    except BaseException:
        target.unlink()
        raise
    return target


def copy_database(source: Path, target: Path, tell: Callable[[int, int], None] = lambda _done, _total: None) -> None:
    """Copy what is committed in a database, as of one moment, into an empty file; others may go on writing.

    Args:
        source: The database.
        target: Where to; `create_private` makes it.
        tell: Called with the pages that were copied, and with all there are.

    Raises:
        DatabaseError: One of them cannot be read, or the other not be written.
    """
    try:
        _look(source, "mode=ro", lambda connection: copy_into(connection, target, tell))
    except sqlite3.Error as error:
        raise translate(error) from error


def _look_ordinarily(path: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    try:
        return _look(path, "mode=ro", read)
    except sqlite3.Error as error:
        # Someone was killed while writing. Nobody can read before that is undone, as any opening of it does.
        if getattr(error, "sqlite_errorname", None) != "SQLITE_READONLY_ROLLBACK":
            raise
    return _look(path, "mode=rw", read)


def _look(path: Path, options: str, read: Callable[[sqlite3.Connection], T]) -> T:
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        return read(connection)


def copy_into(
    source: sqlite3.Connection, target: Path, tell: Callable[[int, int], None] = lambda _done, _total: None
) -> None:
    """Copy what a connection reads, as of one moment, into an empty file."""
    source.execute("BEGIN")  # a snapshot for all steps: without it, another's write would start the copy anew
    source.execute("SELECT 1 FROM sqlite_schema").fetchone()
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy, pages=COPIED_PAGES, progress=lambda _, left, total: tell(total - left, total))


def _new_backup(path: Path, before: str) -> Path:
    """Create an empty file of a name that says when."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"{path.name}.backup-before-{before}-{moment}", 0
    while not create_private(target := path.with_name(f"{name}-{number}" if number else name)):
        number += 1
    return target
