"""Recognising a database of the old system by its tables, whichever of its versions made them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from jobstore.migrate.helpers import has_column

_NEEDED: dict[str, frozenset[str]] = {
    "sessions": frozenset({"id"}),
    "included_files": frozenset({"session_id"}),
    "excluded_files": frozenset({"session_id"}),
    "cached_state": frozenset({"key", "value"}),
    "key_value_store": frozenset({"key", "value"}),
    "background_jobs": frozenset({"id", "prompt", "status"}),
    "gemini_requests": frozenset({"id", "prompt", "status"}),
}
"""Tables of the old system, and the columns without which a row of them means nothing."""
_OF_SESSIONS = frozenset({"project_hash", "task_description", "search_term", "title_regex", "codebase_structure"})
_OLD_MIGRATION = "consolidated_migrations.sql"


@dataclass(frozen=True, slots=True)
class OldDatabase:
    """What a database of the old system holds that can be adopted."""

    tables: dict[str, str]
    """The tables that become tables of the store: as the old system called them, and as they are spelled here."""


_OURS = (("migrations", "checksum"), ("store_identity", "store_id"), ("job_attempts", "lease_expires_at"))
"""Tables and columns that only a store of ours has."""


def recognise(connection: sqlite3.Connection) -> OldDatabase | None:
    """Return what a database of the old system holds; None if it is another.

    It is one if it has its jobs or its sessions, or names the old system's first migration, and is no store of ours.

    Raises:
        sqlite3.Error: It cannot be read.
    """
    if any(has_column(connection, table, column) for table, column in _OURS):  # one of them may be lost
        return None
    columns = _columns(connection)
    tables = {
        table: spelled
        for spelled, names in columns.items()
        if (table := spelled.lower()) in _NEEDED and _NEEDED[table] <= names and _has_a_path(table, names)
    }
    sessions = columns.get(tables.get("sessions", ""), set())
    if {"background_jobs", "gemini_requests"} & tables.keys() or (
        "project_directory" in sessions and sessions & _OF_SESSIONS
    ):
        return OldDatabase(tables)
    return OldDatabase(tables) if tables and _names_old_migration(connection) else None


def _has_a_path(table: str, names: set[str]) -> bool:
    return not table.endswith("_files") or bool({"path", "file_path"} & names)


def _names_old_migration(connection: sqlite3.Connection) -> bool:
    if not has_column(connection, "migrations", "name"):
        return False
    sql = "SELECT 1 FROM migrations WHERE name = ?"
    return connection.execute(sql, (_OLD_MIGRATION,)).fetchone() is not None


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    columns: dict[str, set[str]] = {}
    sql = (
        "SELECT t.name, c.name FROM sqlite_schema AS t, pragma_table_xinfo(t.name) AS c"
        f" WHERE t.type = 'table' AND lower(t.name) IN ({', '.join('?' * len(_NEEDED))})"
    )
    for table, column in connection.execute(sql, (*_NEEDED,)):
        columns.setdefault(table, set()).add(column.lower())
    return columns
