"""Operations on `key_value_store`: general application state."""

from __future__ import annotations

from jobstore.sql import Operation, Value, execute, fetch_all, fetch_one, guarded

FIRST_SURROGATE = 0xD800


def get(_now: int, key: str) -> Operation[str | None]:
    """Return a value as JSON text, or None if there is none."""
    row = yield from fetch_one("SELECT value FROM key_value_store WHERE key = :key", key=key)
    return None if row is None else row["value"]


@guarded
def put(now: int, key: str, value: str) -> Operation[None]:
    """Set a value, given as JSON text."""
    yield from execute(
        """
        INSERT INTO key_value_store (key, value, updated_at) VALUES (:key, :value, :now)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at
        """,
        now=now,
        key=key,
        value=value,
    )


@guarded
def delete(_now: int, key: str) -> Operation[bool]:
    """Delete a value; return whether there was one."""
    return (yield from execute("DELETE FROM key_value_store WHERE key = :key", key=key)) > 0


def items(_now: int, prefix: str | None) -> Operation[dict[str, str]]:
    """Return values as JSON texts by key: all, or those whose key begins with `prefix`."""
    where, parameters = _begins_with(prefix)
    rows = yield from fetch_all(f"SELECT key, value FROM key_value_store {where} ORDER BY key", **parameters)
    return {row["key"]: row["value"] for row in rows}


def _begins_with(prefix: str | None) -> tuple[str, dict[str, Value]]:
    if not prefix:
        return "", {}
    # A range rather than LIKE: exact in case, free of wildcards, and a stretch of the primary key.
    beyond = _behind_all(prefix)
    if beyond is None:
        return "WHERE key >= :prefix", {"prefix": prefix}
    return "WHERE key >= :prefix AND key < :beyond", {"prefix": prefix, "beyond": beyond}


def _behind_all(prefix: str) -> str | None:
    """Return the first text behind all that begin with a prefix; None if there is nothing behind them."""
    body = prefix.rstrip("\U0010ffff")
    if not body:
        return None
    following = ord(body[-1]) + 1
    return body[:-1] + chr(0xE000 if following == FIRST_SURROGATE else following)
