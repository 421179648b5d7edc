"""Operations on `pauses`: lanes that are not claimed from for a while, and how all lanes stand.

In a pause, '' stands for any type. The row of a pause that has ended stays until a claim that finds nothing
forgets it: until then it tells the workers that sleep that there is something to look for.
"""

from __future__ import annotations

from datetime import UTC, datetime

from jobstore.errors import InvalidArgument
from jobstore.models import Claim, Job
from jobstore.operations import attempts
from jobstore.overviews import Lane, Pause
from jobstore.sql import Operation, Row, execute, fetch_all, fetch_one, guarded

_COLUMNS = "task_type, api_type, paused_at, until, reason"
_NEVER = datetime.max.replace(tzinfo=UTC)
_HOLDS = "(pause.until IS NULL OR pause.until > :now)"

# By the whole key, since for an IN SQLite would make tables of the values, anew for each lane; and behind a look
# whether there is any pause at all. A claim in 20 lanes: 42 µs where nothing is paused, 54 where something is; with
# the searches alone 51, with IN 69; 41 before there were pauses (measured).
NOT_PAUSED = f"""(NOT EXISTS (SELECT 1 FROM pauses) OR NOT (
    EXISTS (SELECT 1 FROM pauses AS pause WHERE task_type = lane.task_type AND api_type = lane.api_type AND {_HOLDS})
    OR EXISTS (SELECT 1 FROM pauses AS pause WHERE task_type = lane.task_type AND api_type = '' AND {_HOLDS})
    OR EXISTS (SELECT 1 FROM pauses AS pause WHERE task_type = '' AND api_type = lane.api_type AND {_HOLDS})
    OR EXISTS (SELECT 1 FROM pauses AS pause WHERE task_type = '' AND api_type = '' AND {_HOLDS})))"""
"""Whether nothing pauses `lane` at the time `:now`."""


@guarded
def pause(
    now: int, task_type: str, api_type: str, duration: int | None, until: int | None, reason: str
) -> Operation[Pause]:
    """Claim nothing from some lanes for `duration` milliseconds, until a time, or, without either, until resumed.

    A pause that would end later already stays as it is, one without an end above all.

    Returns:
        The pause that holds now.

    Raises:
        InvalidArgument: The time has come already.
    """
    end = until if duration is None else now + duration
    if end is not None and end <= now:
        raise InvalidArgument("until", "must lie ahead")
    return (yield from _put(now, task_type, api_type, end, reason))


@guarded
def fail_and_pause(
    now: int,
    claim: Claim,
    error_type: str | None,
    error_message: str,
    retry_in: int,
    error_traceback: str | None = None,
) -> Operation[Job]:
    """As `attempts.fail`, and claim nothing from the job's lane for as long, whatever becomes of the job itself.

    Raises:
        LeaseLost: The attempt has ended, and nothing was paused.
    """
    job = yield from attempts.fail(now, claim, error_type, error_message, retry_in, error_traceback)
    reason = f"{error_type or 'a failure'} of job {claim.job_id}, reported by {claim.worker_id}"
    if retry_in > 0:
        yield from _put(now, job.task_type, job.api_type, now + retry_in, reason)
    return job


@guarded
def resume(now: int, task_type: str, api_type: str) -> Operation[list[Pause]]:
    """End all pauses of a task type, an API or a lane, or all there are; return those that held."""
    named = {"task_type": task_type, "api_type": api_type}
    wanted = {name: value for name, value in named.items() if value}
    conditions = " AND ".join(["1 = 1", *(f"{name} = :{name}" for name in wanted)])
    rows = yield from fetch_all(f"DELETE FROM pauses WHERE {conditions} RETURNING {_COLUMNS}", **wanted)
    return [Pause.from_row(row) for row in sorted(rows, key=_key) if _holds(row, now)]


@guarded
def forget_ended(now: int) -> Operation[int]:
    """Delete the pauses that have ended; return how many."""
    return (yield from execute("DELETE FROM pauses WHERE until <= :now", now=now))


def pauses(now: int) -> Operation[list[Pause]]:
    """Return the pauses that hold, in the order of their names."""
    rows = yield from fetch_all(
        f"SELECT {_COLUMNS} FROM pauses AS pause WHERE {_HOLDS} ORDER BY task_type, api_type", now=now
    )
    return [Pause.from_row(row) for row in rows]


def lanes(now: int) -> Operation[list[Lane]]:
    """Return how all lanes stand, in the order of their names."""
    held = yield from pauses(now)
    counts = ", ".join(
        f"""(SELECT COUNT(*) FROM background_jobs AS job WHERE job.task_type = lane.task_type
             AND job.api_type = lane.api_type AND job.status = '{status}') AS {status}"""
        for status in ("idle", "scheduled", "running")
    )
    rows = yield from fetch_all(
        f"""
        SELECT lane.task_type, lane.api_type, {counts},
            (SELECT MIN(job.run_at) FROM background_jobs AS job WHERE job.task_type = lane.task_type
             AND job.api_type = lane.api_type AND job.status = 'idle') AS oldest
        FROM lanes AS lane ORDER BY lane.task_type, lane.api_type
        """
    )
    return [_lane(now, row, held) for row in rows]


def longest(held: list[Pause], task_type: str, api_type: str) -> Pause | None:
    """Return the one of the pauses that keeps a lane the longest."""
    its = [one for one in held if one.task_type in {None, task_type} and one.api_type in {None, api_type}]
    return max(its, key=lambda one: one.until or _NEVER, default=None)


def _lane(now: int, row: Row, held: list[Pause]) -> Lane:
    pause = longest(held, row["task_type"], row["api_type"])
    return Lane(
        task_type=row["task_type"],
        api_type=row["api_type"],
        idle=row["idle"],
        scheduled=row["scheduled"],
        running=row["running"],
        oldest_seconds=None if row["oldest"] is None else max(0, now - row["oldest"]) / 1000,
        paused=pause is not None,
        paused_until=None if pause is None else pause.until,
        pause_reason="" if pause is None else pause.reason,
    )


def _put(now: int, task_type: str, api_type: str, until: int | None, reason: str) -> Operation[Pause]:
    row = yield from fetch_one(
        f"""
        INSERT INTO pauses (task_type, api_type, paused_at, until, reason)
        VALUES (:task_type, :api_type, :now, :until, :reason)
        ON CONFLICT (task_type, api_type) DO UPDATE SET
            paused_at = excluded.paused_at, until = excluded.until, reason = excluded.reason
        WHERE excluded.until IS NULL OR pauses.until <= excluded.until
        RETURNING {_COLUMNS}
        """,
        task_type=task_type,
        api_type=api_type,
        now=now,
        until=until,
        reason=reason,
    )
    if row is None:
        row = yield from fetch_one(
            f"SELECT {_COLUMNS} FROM pauses WHERE task_type = :task_type AND api_type = :api_type",
            task_type=task_type,
            api_type=api_type,
        )
    return Pause.from_row(row or {})


def _key(row: Row) -> tuple[str, str]:
    return row["task_type"], row["api_type"]


def _holds(row: Row, now: int) -> bool:
    return row["until"] is None or row["until"] > now
