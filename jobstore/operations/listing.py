"""Operations that list and count jobs, each part of an index on its own, so that no filter reads the whole table.

A list is the merge of branches, one for each status and `cleared`, within each lane or within one session:
every branch is a stretch of an index that is in the order of the list already.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobstore.errors import InvalidArgument
from jobstore.lifecycle import JobStatus
from jobstore.models import Job, Page
from jobstore.operations.jobs import LIGHT_COLUMNS, MAX_ROWS
from jobstore.overviews import JobStats, LaneStats
from jobstore.sql import Operation, Row, Value, dialect, fetch_all, fetch_one

_COLUMNS = ", ".join(f"job.{name}" for name in LIGHT_COLUMNS.split(", "))

Order = Literal["newest", "active"]

LATEST = 2**63 - 1
_LAST = (LATEST, "\U0010ffff")
_RANK = {JobStatus.RUNNING: 0, JobStatus.IDLE: 1, JobStatus.SCHEDULED: 1}
_FINISHED_RANK = 2


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; None is any. Times are in milliseconds."""

    statuses: Sequence[JobStatus] | None = None
    session_id: str | None = None
    task_type: str | None = None
    api_type: str | None = None
    cleared: bool | None = None
    created_before: int | None = None
    """Exclusive."""
    created_after: int | None = None
    """Inclusive."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a part of a list ended."""

    rank: int
    created_at: int
    id: str

    def encode(self) -> str:
        """Return it as an opaque text."""
        return base64.urlsafe_b64encode(json.dumps([self.rank, self.created_at, self.id]).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read it back.

        Raises:
            InvalidArgument: It is not the cursor of a page.
        """
        with contextlib.suppress(ValueError, TypeError):
            match json.loads(base64.urlsafe_b64decode(text)):
                case [int(rank), int(created_at), str(job_id)] if abs(created_at) < 2**63:
                    return cls(rank, created_at, job_id)
        raise InvalidArgument("cursor", "must be the next_cursor of a page")


def list_jobs(_now: int, where: JobFilter, order: Order, limit: int, cursor: Cursor | None) -> Operation[Page[Job]]:
    """Return a part of the jobs without their texts, newest first within each rank of the order."""
    rows, following = yield from _part(where, order, limit, cursor, _COLUMNS)
    items = [Job.from_row({name: value for name, value in row.items() if name != "rank"}) for row in rows]
    return Page[Job](items=items, next_cursor=None if following is None else following.encode())


def ids(_now: int, where: JobFilter, limit: int, cursor: Cursor | None) -> Operation[tuple[list[str], Cursor | None]]:
    """Return the ids of a part of the jobs, newest first, and where the next part begins."""
    rows, following = yield from _part(where, "newest", limit, cursor, "job.id, job.created_at")
    return [row["id"] for row in rows], following


def _part(
    where: JobFilter, order: Order, limit: int, cursor: Cursor | None, columns: str
) -> Operation[tuple[list[Row], Cursor | None]]:
    """Return the rows of a part, each with its rank, and where the next part begins."""
    branches, parameters = _branches(where, order, cursor)
    if not branches:
        return [], None
    scope, conditions, more = _scope(where)
    facts = yield from dialect()
    source = f"""
        FROM background_jobs AS part
        WHERE {conditions} AND part.status = branch.status AND part.cleared = branch.cleared
            AND (part.created_at, part.id) < (branch.before_at, branch.before_id)
            AND part.created_at >= :created_after
        ORDER BY part.created_at DESC, part.id DESC LIMIT :limit
    """
    if facts.lateral:
        join = f"CROSS JOIN LATERAL (SELECT part.* {source}) AS job"
    else:
        join = f"CROSS JOIN background_jobs AS job ON job.id IN (SELECT part.id {source})"
    rows = yield from fetch_all(
        f"""
        WITH branch AS ({branches})
        SELECT {columns}, branch.rank AS rank
        FROM {scope} {join}
        ORDER BY branch.rank, job.created_at DESC, job.id DESC LIMIT :limit
        """,
        **parameters,
        **more,
        created_after=-(2**63) if where.created_after is None else where.created_after,
        limit=limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], None if last is None else Cursor(last["rank"], last["created_at"], last["id"])


def changed_since(_now: int, session_id: str, since: int) -> Operation[list[Job]]:
    """Return the jobs of a session that were changed at or after a time, without their texts, in that order.

    At most `MAX_ROWS`, and beyond that those of the last one's millisecond: call again with that.
    """
    conditions = "session_id = :session_id AND updated_at >= :since"
    rows = yield from fetch_all(
        f"""
        SELECT {LIGHT_COLUMNS} FROM background_jobs
        WHERE {conditions} AND updated_at <= COALESCE((
            SELECT updated_at FROM background_jobs WHERE {conditions} ORDER BY updated_at LIMIT 1 OFFSET {MAX_ROWS - 1}
        ), {LATEST})
        ORDER BY updated_at, id
        """,
        session_id=session_id,
        since=since,
    )
    return [Job.from_row(row) for row in rows]


def count_jobs(_now: int, where: JobFilter) -> Operation[int]:
    """Return how many jobs there are."""
    branches, parameters = _branches(where, "newest", None)
    if not branches:
        return 0
    scope, conditions, more = _scope(where)
    row = yield from fetch_one(
        f"""
        WITH branch AS ({branches})
        SELECT COUNT(*) AS count FROM {scope} CROSS JOIN background_jobs AS part
        WHERE {conditions} AND part.status = branch.status AND part.cleared = branch.cleared
                AND part.created_at < branch.before_at AND part.created_at >= :created_after
        """,
        **parameters,
        **more,
        created_after=-(2**63) if where.created_after is None else where.created_after,
    )
    count: int = row["count"] if row else 0
    return count


def stats(_now: int) -> Operation[JobStats]:
    """Return how many jobs there are by status and lane."""
    rows = yield from fetch_all(
        """
        SELECT task_type, api_type, status, COUNT(*) AS count FROM background_jobs
        GROUP BY task_type, api_type, status ORDER BY task_type, api_type, status
        """
    )
    totals = dict.fromkeys(JobStatus, 0)
    lanes: dict[tuple[str, str], dict[JobStatus, int]] = {}
    for row in rows:
        status = JobStatus(row["status"])
        totals[status] += row["count"]
        lanes.setdefault((row["task_type"], row["api_type"]), {})[status] = row["count"]
    return JobStats(
        counts=totals,
        lanes=[LaneStats(task_type=task, api_type=api, counts=counts) for (task, api), counts in lanes.items()],
    )


def _scope(where: JobFilter) -> tuple[str, str, dict[str, Value]]:
    """Return what the branches are taken of: one session, or each lane."""
    wanted = {"task_type": where.task_type, "api_type": where.api_type}
    named: dict[str, Value] = {name: value for name, value in wanted.items() if value is not None}
    if where.session_id is not None:
        conditions = ["part.session_id = :session_id", *(f"part.{name} = :{name}" for name in named)]
        return "branch", " AND ".join(conditions), {"session_id": where.session_id, **named}
    lanes = "lanes AS lane"
    if named:
        lanes = f"(SELECT * FROM lanes WHERE {' AND '.join(f'{name} = :{name}' for name in named)}) AS lane"
    return f"{lanes} CROSS JOIN branch", "part.task_type = lane.task_type AND part.api_type = lane.api_type", named


def _branches(where: JobFilter, order: Order, cursor: Cursor | None) -> tuple[str, dict[str, Value]]:
    """Return the branches as a table of their own, each with where it begins."""
    parameters: dict[str, Value] = {}
    selects: list[str] = []
    latest = _LAST if where.created_before is None else (where.created_before, "")
    for status in JobStatus if where.statuses is None else where.statuses:
        rank = _RANK.get(status, _FINISHED_RANK) if order == "active" else 0
        if cursor is not None and rank < cursor.rank:
            continue
        begin = min(latest, (cursor.created_at, cursor.id)) if cursor and rank == cursor.rank else latest
        for cleared in (0, 1) if where.cleared is None else (int(where.cleared),):
            number = len(selects)
            selects.append(
                f"SELECT '{status}' AS status, {cleared} AS cleared, {rank} AS rank, "
                f":before_at{number} AS before_at, :before_id{number} AS before_id"
            )
            parameters[f"before_at{number}"], parameters[f"before_id{number}"] = begin
    return " UNION ALL ".join(selects), parameters
