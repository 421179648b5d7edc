"""Helpers for those who write a step in Python."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether there is such a table."""
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (table,))
    return found.fetchone() is not None


def has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    """Return whether a table has such a column; False where there is no such table."""
    return column in _columns(connection, table)


def rebuild_table(
    connection: sqlite3.Connection, table: str, create: str, values: Mapping[str, str] | None = None
) -> None:
    """Replace a table by one of another definition, keeping its rows, indexes and triggers.

    The order is the one that https://sqlite.org/lang_altertable.html (section 7) asks for: new table, copy,
    drop the old, rename the new, indexes and triggers again. The runner has switched foreign keys off before
    the transaction and checks them before its end.

    Args:
        connection: In the step's transaction.
        table: The table's name.
        create: Its new definition, with `{table}` where the name stands.
        values: For columns of the new table, an SQL expression over the old one; others are copied by name,
            and columns that the old one lacks take their default.

    Raises:
        ValueError: There is no such table, `create` does not name `{table}`, or foreign keys are on.

    Example:
        >>> rebuild_table(connection, "pets", "CREATE TABLE {table} (name TEXT NOT NULL)", {"name": "coalesce(name, '?')"})
    """
    if not has_table(connection, table):
        raise ValueError(f"there is no table {table}")
    if "{table}" not in create:
        raise ValueError("write {table} where the name of the table stands")
    if connection.execute("PRAGMA foreign_keys").fetchone()[0]:
        raise ValueError("foreign keys are on: dropping the old table would delete its children's rows")
    dependants = connection.execute(
        "SELECT sql FROM sqlite_schema WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL",
        (table,),
    ).fetchall()
    old, new = _quoted(table), _quoted(f"{table}_rebuilt")
    connection.execute(create.replace("{table}", new))
    kept = set(_columns(connection, table))
    sources = {name: _quoted(name) for name in _columns(connection, f"{table}_rebuilt") if name in kept}
    sources |= dict(values or {})
    names = ", ".join(map(_quoted, sources))
    connection.execute(f"INSERT INTO {new} ({names}) SELECT {', '.join(sources.values())} FROM {old}")
    connection.execute(f"DROP TABLE {old}")
    # Or renaming would stumble over views and triggers of other tables, which name a table that is gone just now.
    connection.execute("PRAGMA legacy_alter_table=ON")
    connection.execute(f"ALTER TABLE {new} RENAME TO {old}")
    connection.execute("PRAGMA legacy_alter_table=OFF")
    for (sql,) in dependants:
        connection.execute(sql)


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
