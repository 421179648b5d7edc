"""Operations on `included_files` and `excluded_files`: the paths selected for a session, or forced out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jobstore.errors import ConstraintFailed, SessionNotFound
from jobstore.sql import Operation, execute, execute_many, fetch_all, fetch_one

Table = Literal["included_files", "excluded_files"]


def paths(_now: int, table: Table, session_id: str) -> Operation[list[str]]:
    """Return a session's paths in the order they were given; none for an unknown session."""
    rows = yield from fetch_all(
        f"SELECT path FROM {table} WHERE session_id = :session_id ORDER BY position", session_id=session_id
    )
    return [row["path"] for row in rows]


def replace(_now: int, table: Table, session_id: str, paths: Sequence[str]) -> Operation[None]:
    """Make these the session's paths.

    Raises:
        SessionNotFound: There is no such session.
    """
    yield from _require(session_id)
    yield from execute(f"DELETE FROM {table} WHERE session_id = :session_id", session_id=session_id)
    yield from _insert(table, session_id, paths, 0)


def add(_now: int, table: Table, session_id: str, paths: Sequence[str]) -> Operation[None]:
    """Add paths behind those that are there; one that is there already keeps its place.

    Raises:
        SessionNotFound: There is no such session.
    """
    yield from _require(session_id)
    last = yield from fetch_one(
        f"SELECT COALESCE(MAX(position) + 1, 0) AS next FROM {table} WHERE session_id = :session_id",
        session_id=session_id,
    )
    yield from _insert(table, session_id, paths, 0 if last is None else last["next"])


def _insert(table: Table, session_id: str, paths: Sequence[str], begin: int) -> Operation[None]:
    try:
        yield from execute_many(
            f"""
            INSERT INTO {table} (session_id, path, position) VALUES (:session_id, :path, :position)
            ON CONFLICT (session_id, path) DO NOTHING
            """,
            [
                {"session_id": session_id, "path": path, "position": position}
                for position, path in enumerate(paths, start=begin)
            ],
        )
    except ConstraintFailed as error:
        if error.kind == "foreign_key":  # deleted since the look, where others write at the same time
            raise SessionNotFound(session_id) from error
        raise


def remove(_now: int, table: Table, session_id: str, paths: Sequence[str]) -> Operation[int]:
    """Remove paths; return how many were there."""
    return (
        yield from execute_many(
            f"DELETE FROM {table} WHERE session_id = :session_id AND path = :path",
            [{"session_id": session_id, "path": path} for path in paths],
        )
    )


def _require(session_id: str) -> Operation[None]:
    """Look first: with no path to insert, no foreign key would object."""
    if (yield from fetch_one("SELECT 1 FROM sessions WHERE id = :session_id", session_id=session_id)) is None:
        raise SessionNotFound(session_id)
