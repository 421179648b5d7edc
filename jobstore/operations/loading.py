"""Operations that put rows back into a table which were dumped from one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jobstore.formats import Kind
from jobstore.operations.promotion import Table, listed, quoted
from jobstore.sql import Operation, Row, dialect, execute_many, fetch_all, fetch_one, numbered, placeholders

Existing = Literal["refuse", "skip", "replace"]
"""What becomes of rows that are there already."""

_KINDS: dict[str, Kind] = {
    "INTEGER": "integer", "BIGINT": "integer", "REAL": "number", "DOUBLE PRECISION": "number", "TEXT": "text",
    "JSON": "text",
}  # fmt: skip


def kinds(_now: int, table: Table) -> Operation[dict[str, Kind | None]]:
    """Return what the columns of a table hold, in their order; None is what no dump can hold, such as bytes."""
    facts = yield from dialect()
    rows = yield from fetch_all(facts.column_types, table=table.name)
    return {row["name"]: _KINDS.get(row["type"].upper()) for row in rows}


def is_empty(_now: int, table: Table) -> Operation[bool]:
    """Return whether a table has no rows."""
    return (yield from fetch_one(f"SELECT 1 AS found FROM {table.name} LIMIT 1")) is None


def answers(_now: int, paths: Sequence[str]) -> Operation[set[str]]:
    """Return those of the paths at which answers of jobs lie."""
    names, parameters = placeholders("path", paths)
    rows = yield from fetch_all(
        f"SELECT output_file_path AS path FROM background_jobs WHERE output_file_path IN ({names})", **parameters
    )
    return {row["path"] for row in rows}


def put(_now: int, table: Table, rows: Sequence[Row], existing: Existing) -> Operation[int]:
    """Insert rows, all with the same columns; return how many were written."""
    names = list(rows[0])
    values = ", ".join(f":column{index}" for index in range(len(names)))
    return (
        yield from execute_many(
            f"INSERT INTO {table.name} ({listed(names)}) VALUES ({values}) {_conflict(table, names, existing)}",
            [numbered("column", row.values()) for row in rows],
        )
    )


def _conflict(table: Table, names: Sequence[str], existing: Existing) -> str:
    changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in names if name not in table.key)
    if existing == "refuse":
        return ""
    if existing == "skip" or not changes:
        return f"ON CONFLICT ({listed(table.key)}) DO NOTHING"
    return f"ON CONFLICT ({listed(table.key)}) DO UPDATE SET {changes}"
