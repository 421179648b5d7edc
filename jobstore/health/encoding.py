"""Texts of an SQLite file that are none: SQLite keeps whatever bytes it is given, but whoever reads such a row fails.

One of them in a job that waits ends every claim that meets it. Neither SQLite's integrity_check nor a CHECK looks at
them; another program may have written them, or a failing disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from jobstore.health.schema import Table, read_schema, wanted_schema
from jobstore.migrate import Step
from jobstore.migrate.helpers import quoted
from jobstore.operations.invariants import Rule


def text_rules(connection: sqlite3.Connection, steps: Sequence[Step]) -> list[Rule]:
    """Return for each table of the steps, as far as it is there, the rule that its texts are texts.

    Args:
        connection: On which alone the rules work: it learns the functions that they call.
        steps: Of the schema.
    """
    [(encoding,)] = connection.execute("PRAGMA encoding").fetchall()
    connection.create_function("is_text", 1, partial(_is_text, encoding), deterministic=True)
    connection.create_function("as_text", 1, partial(_as_text, encoding), deterministic=True)
    actual = read_schema(connection).tables
    rules = [_rule(actual[name]) for name in wanted_schema(steps).tables if name in actual]
    return [rule for rule in rules if rule.broken]


def _rule(table: Table) -> Rule:
    texts = [quoted(column.name) for column in table.columns.values() if column.type == "TEXT"]
    keys = sorted((column for column in table.columns.values() if column.key), key=lambda column: column.key)
    return Rule(
        f"{table.name}-encoding",
        table.name,
        tuple(column.name for column in keys) or ("rowid",),
        " OR ".join(f"NOT is_text(CAST({name} AS BLOB))" for name in texts),
        ", ".join(f"{name} = as_text(CAST({name} AS BLOB))" for name in texts),
        "rows with texts that are not UTF-8, which nobody can read",
        "such bytes are written out, as \\xff",
    )


def _is_text(encoding: str, data: bytes | None) -> bool:
    try:
        return data is None or data.decode(encoding) is not None
    except UnicodeDecodeError:
        return False


def _as_text(encoding: str, data: bytes | None) -> str | None:
    return None if data is None else data.decode(encoding, "backslashreplace")
