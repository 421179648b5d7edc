"""Where that is kept for which the store has no place."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from pydantic import JsonValue

from jobstore.encoding import dump_json
from jobstore.migrate.adoption.report import Findings
from jobstore.migrate.adoption.rows import OldRow, insert
from jobstore.migrate.adoption.values import read_json

KEY = "adopted"
"""The key in a job's metadata, or in a session's model settings, below which the rest of its old row is kept."""
TABLE = "adopted_leftovers"

_CREATE = f"""
    CREATE TABLE IF NOT EXISTS {TABLE} (
        table_name TEXT NOT NULL,
        row_key TEXT NOT NULL CHECK (json_valid(row_key)),
        kept TEXT NOT NULL CHECK (json_valid(kept))
    ) STRICT
"""


class Leftovers:
    """Keeps what is left of rows that have no metadata, in a table of its own."""

    def __init__(self, connection: sqlite3.Connection, findings: Findings) -> None:
        self._connection = connection
        self._findings = findings

    def keep(self, table: str, key: str, row: OldRow) -> None:
        """Keep what is left of a row that was adopted."""
        left = row.leftovers()
        self._findings.row(table, key, row.changes, row.problems, left)
        if left:
            self._insert(table, key, left)

    def keep_whole(self, table: str, key: str, row: OldRow, why: str) -> None:
        """Keep a row that cannot be adopted."""
        self._findings.kept_whole(table, key, why)
        self._insert(table, key, row.whole())

    def _insert(self, table: str, key: str, kept: Mapping[str, JsonValue]) -> None:
        self._connection.execute(_CREATE)
        insert(self._connection, TABLE, {"table_name": table, "row_key": key, "kept": dump_json("kept", kept)})


def read_metadata(text: str) -> dict[str, JsonValue] | None:
    """Return a job's metadata; None if it is no JSON object."""
    _, value = read_json(text)
    return value if isinstance(value, dict) else None


def with_adopted(text: str, leftovers: Mapping[str, JsonValue]) -> str:
    """Return the text of a JSON object with what is left of a row added; all else stays as it is written."""
    if not leftovers:
        return text
    present = json.loads(text)
    key, number = KEY, 1
    while key in present:
        number += 1
        key = f"{KEY}_{number}"
    addition = dump_json("metadata", {key: dict(leftovers)})[1:]
    return f"{text.rstrip()[:-1].rstrip()}{',' if present else ''}{addition}"
