"""`jobstore vacuum --full`: writes a file anew, without what is free in it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from jobstore.databases import find_database
from jobstore.engines.sqlite import connect_writer
from jobstore.engines.sqlite_driver import translate
from jobstore.engines.sqlite_space import space
from jobstore.errors import InvalidArgument
from jobstore.health import copies
from jobstore.overviews import Vacuumed
from jobstore.ownership import exclusive, real

WAIT_MILLISECONDS = 5_000
"""For a program that reads the file without the store."""


def write_anew(url: str | os.PathLike[str]) -> Vacuumed:
    """Write a database's file anew while nobody has it open; from then on `JobStore.vacuum` can give space back.

    SQLite does it in one transaction: killed at any time, the file is as it was. It needs twice the room of what the
    file holds: for its log beside it, and for a copy where SQLite puts temporary files (`SQLITE_TMPDIR`).

    Args:
        url: The database, as for `JobStore`.

    Returns:
        What it took before and after.

    Raises:
        InvalidArgument: It is no file.
        DatabaseInUse: A program has it open.
        DatabaseError: It is no store of ours, or SQLite cannot write it. It is as it was.

    Example:
        >>> write_anew("jobs.db").after.total
        12288
    """
    database = find_database(url)
    if database.path is None:
        raise InvalidArgument("full", f"{database.name} is no file: leave it out, and the server vacuums each table")
    path = real(database.path)
    copies.store_id(path)
    with exclusive(path, "vacuum") as owner, closing(connect_writer(owner.path, "full")) as connection:
        try:
            return _write_anew(connection, owner.path)
        except sqlite3.Error as error:
            raise translate(error) from error


def _write_anew(connection: sqlite3.Connection, path: Path) -> Vacuumed:
    before = space(connection, path)
    connection.execute(f"PRAGMA busy_timeout={WAIT_MILLISECONDS}")
    connection.execute("PRAGMA temp_store=FILE")  # the copy is as large as the database
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # takes effect by the next statement
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return Vacuumed(before=before, after=space(connection, path))
