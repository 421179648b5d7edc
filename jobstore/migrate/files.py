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
        return _look(path, "mode=ro", read)
    except sqlite3.Error as error:
        raise translate(error) from error


def back_up(path: Path) -> Path:
    """Copy what is committed in a database to a new file beside it, durably, and return the copy's path.

    Raises:
        DatabaseError: It cannot be written. What was begun is removed.
    """
    target = _new_backup(path)
    try:
        _look(path, "mode=ro", lambda source: _copy(source, target))
        sync_folder(target.parent)
    except BaseException as error:
        target.unlink()
        if isinstance(error, sqlite3.Error):
            raise translate(error) from error
        raise
    return target


def _look(path: Path, options: str, read: Callable[[sqlite3.Connection], T]) -> T:
    uri = f"file:{quote(os.fsencode(path))}?{options}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        return read(connection)


def _copy(source: sqlite3.Connection, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)  # in one step: between several, another's write would start it anew


def _new_backup(path: Path) -> Path:
    """Create an empty file of a name that says when."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"{path.name}.backup-{moment}", 0
    while not create_private(target := path.with_name(f"{name}-{number}" if number else name)):
        number += 1
    return target
