"""Operations on `cached_state`: user interface state by project, each value with an optional end."""

from __future__ import annotations

from jobstore.sql import Operation, execute, fetch_all, fetch_one, guarded

_ALIVE = "(expires_at IS NULL OR expires_at > :now)"


def get(now: int, project_hash: str, key: str) -> Operation[str | None]:
    """Return a value as JSON text, or None if there is none or it has expired."""
    row = yield from fetch_one(
        f"SELECT value FROM cached_state WHERE project_hash = :project_hash AND key = :key AND {_ALIVE}",
        now=now,
        project_hash=project_hash,
        key=key,
    )
    return None if row is None else row["value"]


@guarded
def put(now: int, project_hash: str, project_directory: str, key: str, value: str, ttl: int | None) -> Operation[None]:
    """Set a value, given as JSON text, for `ttl` milliseconds or for good."""
    yield from execute(
        """
        INSERT INTO cached_state (project_hash, project_directory, key, value, updated_at, expires_at)
        VALUES (:project_hash, :project_directory, :key, :value, :now, :expires_at)
        ON CONFLICT (project_hash, key) DO UPDATE SET
            value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at
        """,
        now=now,
        project_hash=project_hash,
        project_directory=project_directory,
        key=key,
        value=value,
        expires_at=None if ttl is None else now + ttl,
    )


@guarded
def delete(_now: int, project_hash: str, key: str) -> Operation[bool]:
    """Delete a value; return whether there was one."""
    count = yield from execute(
        "DELETE FROM cached_state WHERE project_hash = :project_hash AND key = :key",
        project_hash=project_hash,
        key=key,
    )
    return count > 0


def all_of(now: int, project_hash: str) -> Operation[dict[str, str]]:
    """Return all values of a project as JSON texts by key."""
    rows = yield from fetch_all(
        f"SELECT key, value FROM cached_state WHERE project_hash = :project_hash AND {_ALIVE} ORDER BY key",
        now=now,
        project_hash=project_hash,
    )
    return {row["key"]: row["value"] for row in rows}
