"""`jobstore reset`: deletes all that a store holds, after a backup."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jobstore.databases import PostgresDatabase, find_database
from jobstore.engines.sqlite_driver import translate
from jobstore.health import copies
from jobstore.health.backups import Backup, make_backup
from jobstore.health.restoring import Staged, staging
from jobstore.migrate import Migrator
from jobstore.outputs import place_of
from jobstore.ownership import exclusive, shared
from jobstore.promotion.pair import Report


class Reset(BaseModel):
    """What was deleted, and where the copy of it is."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Of the database, without a password."""
    backup: Backup | None
    """None on PostgreSQL."""


def reset(
    url: str | os.PathLike[str],
    *,
    outputs: str | os.PathLike[str] | None = None,
    report: Report = lambda _progress: None,
    backed_up: Callable[[Backup], None] = lambda _backup: None,
) -> Reset:
    """Delete all that a store holds, once a backup of it is made; on PostgreSQL that is to be made before.

    A file is replaced by an empty one of the newest schema, tables of your own included; the folder of its large texts
    goes as well. On PostgreSQL the tables of jobstore are emptied. Texts in object storage, or in a folder that was
    given for PostgreSQL, are named by nothing any more: `store.sweep()` removes them once they are a day old.

    Args:
        url: The database, as for `JobStore`.
        outputs: Where its large texts lie, as for `JobStore`.
        report: Called while the backup is made.
        backed_up: Called with the backup before anything is deleted.

    Raises:
        DatabaseInUse: A program has the file open; on PostgreSQL, workers live or hold leases.
        DatabaseError: It cannot be read, or the backup cannot be written. Nothing was deleted.
        OutputError: The place of the large texts is away, or belongs to another store. Nothing was deleted.

    Example:
        >>> reset("jobs.db").backup.path
        PosixPath('/srv/jobs.db.backup-before-reset-20300131T080000Z')
    """
    database = find_database(url)
    if isinstance(database, PostgresDatabase):
        database.load()
        from jobstore.health.resetting_postgres import empty  # noqa: PLC0415 - needs the extra

        empty(database)
        return Reset(name=database.name, backup=None)
    path, place = copies.file_of(database, "reset"), place_of(outputs or database.outputs or "")
    with shared(path):  # which finishes a swap that was interrupted
        copies.store_id(path)  # refused before anything is touched, if it is no store of ours
    with exclusive(path, "reset") as owner:
        made = make_backup(path, place, path.parent, f"{path.name}.backup-before-reset-", report=report)
        backed_up(made)
        with staging(Staged(path, place, "resetting"), owner) as staged:
            _make_empty(staged.database, copies.store_id(path))
            staged.swap_in(owner, staged.old)
    return Reset(name=database.name, backup=made)


def _make_empty(path: Path, store_id: str) -> None:
    """Make an empty database of the same store: what marks its place of large texts still fits."""
    Migrator(path).run()
    try:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE store_identity SET store_id = ?", (store_id,))
    except sqlite3.Error as error:
        raise translate(error) from error
