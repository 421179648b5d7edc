"""State of user interfaces and of the application: texts that are JSON more often than not."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable

from jobstore.encoding import dump_json
from jobstore.migrate.adoption.leftovers import Leftovers
from jobstore.migrate.adoption.report import REPORT_KEY
from jobstore.migrate.adoption.rows import OldRow, insert
from jobstore.migrate.adoption.sessions import NO_DIRECTORY
from jobstore.migrate.adoption.values import as_json, as_text, read_json
from jobstore.operations.sessions import hash_project
from jobstore.sql import Value

Key = tuple[str, ...]


class States:
    """Adopts values by key. Of several with the same key the latest counts, and the others are kept whole.

    Args:
        connection: In the adoption's transaction.
        leftovers: Where the others are kept.
        directories: Of projects, by what the old system called their hashes.
        now: The present time in milliseconds.
    """

    def __init__(
        self, connection: sqlite3.Connection, leftovers: Leftovers, directories: dict[str, str], now: int
    ) -> None:
        self._connection = connection
        self._leftovers = leftovers
        self._directories = directories
        self._now = now

    def latest(self, table: str, rows: Iterable[OldRow]) -> dict[Key, tuple[float, int]]:
        """Return which row counts for each key: when it was written, and its number."""
        found: dict[Key, tuple[float, int]] = {}
        if table == "key_value_store":
            found[REPORT_KEY,] = math.inf, 0  # the report's own
        for number, row in enumerate(rows):
            written = row.time("updated_at") or 0, number
            key = self._key(table, row)[0]
            found[key] = max(found.get(key, written), written)
        return found

    def adopt(self, table: str, row: OldRow, number: int, latest: dict[Key, tuple[float, int]]) -> None:
        """Make a row a value of the store."""
        key, directory = self._key(table, row)
        shown = dump_json("key", list(key))
        if latest[key][1] != number or math.isinf(latest[key][0]):
            self._leftovers.keep_whole(table, shown, row, "another row of the same key counts")
            return
        columns: dict[str, Value] = {"key": key[-1], "value": _value(row)}
        columns["updated_at"] = row.time("updated_at") or self._now
        if table == "cached_state":
            columns |= {"project_hash": key[0], "project_directory": directory}
        insert(self._connection, table, columns)
        self._leftovers.keep(table, shown, row)

    def _key(self, table: str, row: OldRow) -> tuple[Key, str]:
        """Take a row's key, and its project's directory, if it belongs to one."""
        name = row.name("key") or ""
        if not name:
            row.problem("key", "key is missing")
        if table == "key_value_store":
            return (name,), ""
        old = row.name("project_hash") or ""
        directory = row.name("project_directory") or self._directories.get(old) or NO_DIRECTORY
        project_hash = hash_project(directory)
        if directory == NO_DIRECTORY:
            row.problem("project_directory", "project_directory is missing")
            project_hash = old or project_hash
        if project_hash != old:
            row.keep("project_hash")
        return (project_hash, name), directory


def _value(row: OldRow) -> str:
    """Take a value: JSON as it is written, any other text as a JSON string; what was no text is kept as well.

    A JSON string is kept beside as well, or nobody could tell whether the old text had its quotation marks.
    """
    value = row.raw("value")
    if not isinstance(value, str):
        row.keep("value")
    if value is None or isinstance(value, int | float):
        return json.dumps(as_json(value))
    value = as_text(value)
    is_json, meaning = read_json(value)
    if is_json and isinstance(meaning, str):
        row.keep("value")
    if is_json:
        return value
    row.changes.append("value was no JSON: it is a JSON string now")
    return dump_json("value", value)
