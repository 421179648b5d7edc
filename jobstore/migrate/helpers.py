"""Helpers for those who write a step in Python."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping


def has_table(connection: sqlite3.Connection, table: str) -> bool:
    """Return whether there is such a table, in any case of letters, as in SQL."""
    sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ? COLLATE NOCASE"
    return connection.execute(sql, (table,)).fetchone() is not None


def has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    """Return whether a table has such a column, in any case of letters; False where there is no such table."""
    sql = "SELECT 1 FROM pragma_table_xinfo(?) WHERE name = ? COLLATE NOCASE"
    return connection.execute(sql, (table, column)).fetchone() is not None


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
        sqlite3.Error: The rows do not fit the new definition, or an index or a trigger names a column that it
            lacks: drop that one first.

    Example:
        >>> rebuild_table(
        ...     connection,
        ...     "pets",
        ...     "CREATE TABLE {table} (name TEXT NOT NULL) STRICT",
        ...     {"name": "coalesce(name, '?')"},
        ... )
    """
    if not has_table(connection, table):
        raise ValueError(f"there is no table {table}")
    if "{table}" not in create:
        raise ValueError("write {table} where the name of the table stands")
    if connection.execute("PRAGMA foreign_keys").fetchone()[0]:
        raise ValueError("foreign keys are on: dropping the old table would delete its children's rows")
    dependants = connection.execute(
        "SELECT sql FROM sqlite_schema"
        " WHERE tbl_name = ? COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL",
        (table,),
    ).fetchall()
    old, new = quoted(table), quoted(f"{table}_rebuilt")
    # Only where it is created: a reference of the table to itself means the name that it ends up with.
    connection.execute(create.replace("{table}", new, 1).replace("{table}", old))
    _copy_rows(connection, table, f"{table}_rebuilt", values or {})
    connection.execute(f"DROP TABLE {old}")
    rename_table(connection, f"{table}_rebuilt", table)
    for (sql,) in dependants:
        connection.execute(sql)


def _copy_rows(connection: sqlite3.Connection, old: str, new: str, values: Mapping[str, str]) -> None:
    kept = {name.lower() for name in _columns(connection, old, generated=True)}
    copied = [name for name in _columns(connection, new, generated=False) if name.lower() in kept]
    sources = {name: quoted(name) for name in copied if name not in values} | dict(values)
    names, expressions = ", ".join(map(quoted, sources)), ", ".join(sources.values())
    connection.execute(f"INSERT INTO {quoted(new)} ({names}) SELECT {expressions} FROM {quoted(old)}")


def rename_table(connection: sqlite3.Connection, table: str, name: str) -> None:
    """Rename a table, and change nothing in views, in other tables' triggers and in their foreign keys.

    They go on to mean whichever table has the name that they say, also while there is none. Foreign keys must be off.
    """
    connection.execute("PRAGMA legacy_alter_table=ON")
    try:
        connection.execute(f"ALTER TABLE {quoted(table)} RENAME TO {quoted(name)}")
    finally:
        connection.execute("PRAGMA legacy_alter_table=OFF")


def _columns(connection: sqlite3.Connection, table: str, *, generated: bool) -> list[str]:
    pragma = "pragma_table_xinfo" if generated else "pragma_table_info"
    return [row[0] for row in connection.execute(f"SELECT name FROM {pragma}(?)", (table,))]


def quoted(name: str) -> str:
    """Return a name as it stands in SQL, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'
