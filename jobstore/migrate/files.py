"""What a migration does with files: make a new database, look into one, copy one before it is changed."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from jobstore.engines.sqlite_driver import translate
from jobstore.errors import DatabaseError, DiskFailed, DiskFull, ReadOnlyDatabase

T = TypeVar("T")


def create_private(path: Path) -> bool:
    """Create an empty file that only its owner can read, unless there is one; SQLite's own files inherit that.

    Returns:
        Whether it was created.

    Raises:
        ReadOnlyDatabase: The folder cannot be written.
        DatabaseError: It cannot be created for another reason.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise _cannot_create(path, error) from error
    return True


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


def back_up(path: Path) -> Path:
    """Copy what is committed in a database to a new file beside it, durably, and return the copy's path.

    Raises:
        DatabaseError: It cannot be written. What was begun is removed.
    """
    target = _new_backup(path)
    try:
        _look(path, "mode=ro", lambda source: copy_into(source, target))
        sync_folder(target.parent)
    except BaseException as error:
        target.unlink()
        if isinstance(error, sqlite3.Error):
            raise translate(error) from error
        raise
    return target


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


def copy_into(source: sqlite3.Connection, target: Path) -> None:
    """Copy what is committed in a database to a file."""
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)  # in one step: between several, another's write would start it anew


def _new_backup(path: Path) -> Path:
    """Create an empty file of a name that says when."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"{path.name}.backup-{moment}", 0
    while not create_private(target := path.with_name(f"{name}-{number}" if number else name)):
        number += 1
    return target


def _cannot_create(path: Path, error: OSError) -> DatabaseError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"no room to create {path}: free some space and try again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return ReadOnlyDatabase(f"{path} cannot be created ({error.strerror}): check the permissions of its folder")
    return DiskFailed(f"{path} cannot be created: {error.strerror}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt":
        return  # Windows cannot open a folder; its file systems log the names themselves
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
