"""Operations that cancel, retry or clear the next of many jobs: those that a filter finds, newest first.

Each job is looked at once: who begins behind the last never meets one that has come back, or that came meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jobstore.lifecycle import TERMINAL, WAITING, JobStatus
from jobstore.operations import leasing
from jobstore.operations.jobs import MAX_ROWS, SET_CANCELED, SET_RETRIED
from jobstore.operations.listing import Cursor, JobFilter, ids
from jobstore.sql import Operation, execute, guarded, placeholders

CANCELABLE = (JobStatus.RUNNING, *WAITING)
RETRYABLE = TERMINAL
SET_CLEARED = "cleared = 1, updated_at = :now"
ROUND_ROWS = MAX_ROWS // 2
"""The rest is left to the leases and jobs that a round has to settle first."""


class Round(NamedTuple):
    """What one round changed."""

    changed: int
    cursor: Cursor | None
    """Where the next round begins; None at the end."""


@guarded
def cancel(now: int, where: JobFilter, cursor: Cursor | None) -> Operation[Round]:
    """Idle or scheduled → canceled. Running jobs that are not asked to end yet are asked to."""
    yield from leasing.rescue_due(now)
    found, following = yield from ids(now, where, ROUND_ROWS, cursor)
    changed = yield from _set(now, SET_CANCELED, found, where.statuses or CANCELABLE, "AND cancel_requested_at IS NULL")
    return Round(changed, following)


@guarded
def retry(now: int, where: JobFilter, cursor: Cursor | None) -> Operation[Round]:
    """failed, canceled or completed → idle, with all their attempts before them again; but for those without texts."""
    yield from leasing.rescue_due(now)
    found, following = yield from ids(now, where, ROUND_ROWS, cursor)
    changed = yield from _set(now, SET_RETRIED, found, where.statuses or RETRYABLE, "AND texts_pruned_at IS NULL")
    return Round(changed, following)


@guarded
def clear(now: int, where: JobFilter, cursor: Cursor | None) -> Operation[Round]:
    """Hide jobs from lists."""
    found, following = yield from ids(now, where, ROUND_ROWS, cursor)
    changed = yield from _set(now, SET_CLEARED, found, where.statuses or tuple(JobStatus), "AND cleared = 0")
    return Round(changed, following)


def _set(
    now: int, assignments: str, found: list[str], statuses: Sequence[JobStatus], guard: str = ""
) -> Operation[int]:
    """Change those that were found, as far as they still have the status that they were found by."""
    if not found:
        return 0
    names, parameters = placeholders("id", found)
    allowed = ", ".join(f"'{status}'" for status in statuses)
    return (
        yield from execute(
            f"UPDATE background_jobs SET {assignments} WHERE id IN ({names}) AND status IN ({allowed}) {guard}",
            now=now,
            **parameters,
        )
    )
