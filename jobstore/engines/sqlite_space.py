"""The room that an SQLite file takes, and giving back what is free in it, a little at a time."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from jobstore.engines.sqlite_driver import begin, roll_back, translate
from jobstore.errors import InvalidArgument
from jobstore.overviews import Space

STEP_PAGES = 256
"""Pages that one step moves, 1 MiB: a few milliseconds for which nobody else can write."""
_INCREMENTAL = 2


def space(connection: sqlite3.Connection, path: Path) -> Space:
    """Return what the file and its log take."""
    page_size = _number(connection, "page_size")
    return Space(
        total=file_size(path) + file_size(f"{path}-wal"),
        free=_number(connection, "freelist_count") * page_size,
        can_shrink=_number(connection, "auto_vacuum") == _INCREMENTAL,
    )


def give_back(connection: sqlite3.Connection, spare: int, deadline: float) -> float | None:
    """Take one step; return how many seconds it held the writer, or None if no more than `spare` bytes are free.

    The file itself shrinks when its log is moved into it.

    Raises:
        InvalidArgument: The file was made without auto_vacuum.
        DatabaseError: It failed.
    """
    _require_shrinkable(connection)
    page_size = _number(connection, "page_size")
    free = _number(connection, "freelist_count") * page_size
    if free <= spare:
        return None
    begin(connection, deadline)
    began = time.monotonic()
    try:
        for _ in range(min(STEP_PAGES, -(-(free - spare) // page_size))):
            connection.execute("PRAGMA incremental_vacuum(1)")  # the sqlite3 module takes but one step of a PRAGMA
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise translate(error) from error
    finally:
        roll_back(connection)
    return time.monotonic() - began


def overwrite(connection: sqlite3.Connection, *, fully: bool) -> None:
    """Let what is deleted from now on be overwritten: fully, which doubles what is written, or where it costs nothing.

    Raises:
        InvalidArgument: The file was made without auto_vacuum, so that what was freed before stays in it.
        DatabaseError: It failed.
    """
    if fully:
        _require_shrinkable(connection)
    try:
        connection.execute(f"PRAGMA secure_delete={'ON' if fully else 'FAST'}").fetchall()
    except sqlite3.Error as error:
        raise translate(error) from error


def file_size(path: str | Path) -> int:
    """Return how many bytes a file has; 0 if it is not there."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - by path: opening the log would drop the process's locks
    except OSError:
        return 0


def _require_shrinkable(connection: sqlite3.Connection) -> None:
    if _number(connection, "auto_vacuum") != _INCREMENTAL:
        raise InvalidArgument(
            "full",
            "this file was made without auto_vacuum: what is free in it is used again, but can only be given back by "
            "writing the file anew; stop the programs that use it, and run `jobstore vacuum --full`",
        )


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)
