"""Operations on `sessions`."""

from __future__ import annotations

import hashlib

from jobstore.errors import SessionNotFound
from jobstore.models import Session
from jobstore.sql import Operation, Row, Value, execute, fetch_all, fetch_one, guarded

_COLUMNS = ", ".join(Session.model_fields)
_VALUES = ", ".join(f":{name}" for name in Session.model_fields)


def hash_project(project_directory: str) -> str:
    """Return what a project is kept by: the SHA-256 of its directory's path without a slash at its end."""
    return hashlib.sha256((project_directory.rstrip("/") or project_directory).encode()).hexdigest()


@guarded
def create(now: int, columns: dict[str, Value]) -> Operation[Session]:
    """Insert a session."""
    row = columns | {"created_at": now, "updated_at": now}
    yield from execute(f"INSERT INTO sessions ({_COLUMNS}) VALUES ({_VALUES})", **row)
    return Session.from_row(row)


def get(_now: int, session_id: str) -> Operation[Session]:
    """Return a session.

    Raises:
        SessionNotFound: There is no such session.
    """
    row = yield from fetch_one(f"SELECT {_COLUMNS} FROM sessions WHERE id = :id", id=session_id)
    return Session.from_row(_present(row, session_id))


@guarded
def update(now: int, session_id: str, changes: dict[str, Value]) -> Operation[Session]:
    """Change columns of a session.

    Raises:
        SessionNotFound: There is no such session.
    """
    assignments = "".join(f"{name} = :{name}, " for name in changes)
    row = yield from fetch_one(
        f"UPDATE sessions SET {assignments}updated_at = :now WHERE id = :session_id RETURNING {_COLUMNS}",
        **changes,
        now=now,
        session_id=session_id,
    )
    return Session.from_row(_present(row, session_id))


def delete(_now: int, session_id: str) -> Operation[None]:
    """Delete a session with what is left of its files and jobs.

    Raises:
        SessionNotFound: There is no such session.
    """
    if not (yield from execute("DELETE FROM sessions WHERE id = :id", id=session_id)):
        raise SessionNotFound(session_id)


def list_sessions(_now: int, project_hash: str | None) -> Operation[list[Session]]:
    """Return the sessions of a project, or all, the newest first."""
    where = "" if project_hash is None else "WHERE project_hash = :project_hash"
    parameters: dict[str, Value] = {} if project_hash is None else {"project_hash": project_hash}
    rows = yield from fetch_all(
        f"SELECT {_COLUMNS} FROM sessions {where} ORDER BY created_at DESC, id DESC", **parameters
    )
    return [Session.from_row(row) for row in rows]


def _present(row: Row | None, session_id: str) -> Row:
    if row is None:
        raise SessionNotFound(session_id)
    return row
