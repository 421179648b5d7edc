"""Operations on `migrations` and on the store's identity."""

from __future__ import annotations

from jobstore.clock import from_milliseconds
from jobstore.errors import StatementFailed
from jobstore.models import AppliedMigration
from jobstore.sql import Operation, fetch_all, fetch_one


def applied(_now: int) -> Operation[list[AppliedMigration]]:
    """Return the steps that were applied, in order; none where there is no such table yet."""
    try:
        rows = yield from fetch_all("SELECT name, checksum, applied_at FROM migrations ORDER BY name")
    except StatementFailed:
        return []
    return [
        AppliedMigration(name=row["name"], checksum=row["checksum"], applied_at=from_milliseconds(row["applied_at"]))
        for row in rows
    ]


def store_id(_now: int) -> Operation[str]:
    """Return what identifies this store and its outputs folder to each other."""
    row = yield from fetch_one("SELECT store_id FROM store_identity")
    return "" if row is None else row["store_id"]
