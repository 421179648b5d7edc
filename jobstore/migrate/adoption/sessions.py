"""Sessions of the old system, and the paths selected for them."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter

from uuid_utils import uuid7

from jobstore.migrate.adoption.leftovers import Leftovers, with_adopted
from jobstore.migrate.adoption.report import Findings
from jobstore.migrate.adoption.rows import OldRow, insert
from jobstore.operations.sessions import hash_project
from jobstore.sql import Value

NO_DIRECTORY = "(unknown)"
NO_NAME = "(unnamed)"
WITHOUT_SESSION = "without-session"
"""The id of the session that is made for paths which name none."""

_TEXTS = (
    "task_description",
    "search_term",
    "title_regex",
    "content_regex",
    "negative_title_regex",
    "negative_content_regex",
    "codebase_structure",
)
_FLAGS = ("is_regex_active", "search_selected_files_only")


def is_there(connection: sqlite3.Connection, table: str, key: str) -> bool:
    """Whether a table has a row of an id."""
    return connection.execute(f"SELECT 1 FROM {table} WHERE id = ?", (key,)).fetchone() is not None


def take_id(connection: sqlite3.Connection, table: str, row: OldRow) -> tuple[str, bool]:
    """Take a row's id, and tell whether an earlier row has it.

    Then, and if it is missing, the row gets a new one.
    """
    key = row.name("id")
    if key is None:
        row.problem("id", "id is missing: it has a new one")
        return str(uuid7()), False
    if is_there(connection, table, key):
        row.problem("id", "id is another row's too: it has a new one")
        return str(uuid7()), True
    return key, False


class Sessions:
    """Adopts sessions, and makes those that other rows name and that are not there.

    Args:
        connection: In the adoption's transaction.
        findings: What the report will tell.
        now: The present time in milliseconds.
    """

    def __init__(self, connection: sqlite3.Connection, findings: Findings, now: int) -> None:
        self.directories: dict[str, str] = {}
        """Of projects, by what the old system called their hashes."""
        self._connection = connection
        self._findings = findings
        self._now = now
        self._known: set[str] = set()

    def adopt(self, table: str, row: OldRow) -> None:
        """Make a row a session."""
        session_id, _ = take_id(self._connection, "sessions", row)
        directory = row.name("project_directory") or NO_DIRECTORY
        columns: dict[str, Value] = {"id": session_id, "name": row.name("name") or NO_NAME}
        columns |= {"project_directory": directory, "project_hash": self._hash(row, directory)}
        columns |= {name: row.text(name) or "" for name in _TEXTS}
        columns |= {name: row.flag(name) for name in _FLAGS}
        columns["model_used"] = row.text("model_used")
        created, updated = row.time("created_at"), row.time("updated_at")
        columns["created_at"] = created or updated or self._now
        columns["updated_at"] = updated or created or self._now
        leftovers = row.leftovers()
        columns["model_settings"] = with_adopted("{}", leftovers)
        insert(self._connection, "sessions", columns)
        self._findings.row(table, session_id, row.changes, row.problems, leftovers)

    def require(self, session_id: str, directory: str | None = None) -> None:
        """Make a session that a row names, unless it is there."""
        if session_id in self._known:
            return
        if not is_there(self._connection, "sessions", session_id):
            self._make(session_id, directory or NO_DIRECTORY)
        self._known.add(session_id)

    def _make(self, session_id: str, directory: str) -> None:
        columns: dict[str, Value] = {"id": session_id, "name": NO_NAME, "created_at": self._now}
        columns |= {"project_directory": directory, "project_hash": hash_project(directory), "updated_at": self._now}
        columns["model_settings"] = with_adopted("{}", {"made_for": "rows of a session that was not there"})
        insert(self._connection, "sessions", columns)
        self._findings.changed("sessions: made for rows whose session was not there")

    def _hash(self, row: OldRow, directory: str) -> str:
        """Return a project's hash, as the store makes it, and keep the old one."""
        old = row.name("project_hash")
        new = hash_project(directory)
        if old and directory != NO_DIRECTORY:
            self.directories.setdefault(old, directory)
        if old and old != new:
            row.keep("project_hash")
        return new


class Files:
    """Adopts the paths selected for sessions, in their order."""

    def __init__(
        self, connection: sqlite3.Connection, findings: Findings, sessions: Sessions, leftovers: Leftovers
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._sessions = sessions
        self._leftovers = leftovers
        self._positions: Counter[tuple[str, str]] = Counter()

    def adopt(self, table: str, row: OldRow) -> None:
        """Make a row a selected path; one without a path, or a second of the same, is kept whole."""
        session_id = row.name("session_id") or WITHOUT_SESSION
        path = _path(row)
        key = json.dumps([session_id, path], ensure_ascii=False)
        if path is None:
            self._leftovers.keep_whole(table, key, row, "path is missing")
            return
        self._sessions.require(session_id)
        position = self._positions[table, session_id]
        cursor = self._connection.execute(
            f"INSERT INTO {table} (session_id, path, position) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (session_id, path, position),
        )
        if not cursor.rowcount:
            self._leftovers.keep_whole(table, key, row, "path is selected twice")
            return
        self._positions[table, session_id] += 1
        self._leftovers.keep(table, key, row)


def _path(row: OldRow) -> str | None:
    """Return the path of a row of any version: some have it twice."""
    path, older = row.name("path"), row.name("file_path")
    if path and older and older != path:
        row.problem("file_path", "file_path differs from path, which counts")
    return path or older
