"""Operations that begin and renew leases: claiming jobs, rescuing and promoting what fell due, heartbeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from jobstore.lifecycle import CALL_UNKNOWN, EXPIRED, WORKER_LOST, AttemptOutcome
from jobstore.models import Claim, Heartbeat, Job, NewJob, Text
from jobstore.operations import jobs, pausing
from jobstore.operations.attempts import HELD
from jobstore.operations.jobs import COLUMNS, EXPIRED_MESSAGE, MAX_ROWS, NEXT_DUE, insert, new_row
from jobstore.sql import (
    Dialect,
    Operation,
    Row,
    Value,
    dialect,
    execute,
    execute_many,
    fetch_all,
    fetch_one,
    guarded,
    guarded_if,
    numbered,
)

MAX_DUE = MAX_ROWS // 4
"""How many leases a claim rescues, jobs it cancels as expired and jobs it promotes, so that it stays short."""


_ATTEMPT = "INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)"
_INSERT_ATTEMPT = f"{_ATTEMPT} VALUES (:job_id, :attempt, :worker_id, :lease_expires_at, :now)"


class Claimed(NamedTuple):
    """What a claim got."""

    claims: list[Claim]
    more_due: bool
    """Whether more fell due than one claim deals with."""


class Settled(NamedTuple):
    """What was done about what fell due."""

    anything: bool
    more_due: bool
    """Whether there may be more of it."""
    more_expired: bool
    """Whether there may be more jobs that have expired: too many to claim past them."""


@guarded
def claim(
    now: int,
    worker_id: str,
    limit: int,
    lease: int,
    task_types: Sequence[str] | None,
    api_types: Sequence[str] | None,
) -> Operation[Claimed]:
    """Idle → running, the highest priority first, after rescuing, canceling and promoting what fell due.

    Paused lanes are passed over.

    Args:
        now: The present time in milliseconds.
        worker_id: Who claims.
        limit: At most so many.
        lease: Milliseconds until the claim ends unless it is renewed.
        task_types: Only these; None is any.
        api_types: Only these; None is any.
    """
    facts = yield from dialect()
    shape = len(task_types or ()), len(api_types or ()), _bound(limit), facts
    lanes = {**numbered("task", task_types or ()), **numbered("api", api_types or ())}
    expires = now + lease
    attempt: dict[str, Value] = {"worker_id": worker_id, "lease_expires_at": expires, "now": now}
    settled = _NOTHING_SETTLED
    rows = yield from fetch_all(_claim_sql(*shape, unless_due=True), limit=limit, **attempt, **lanes)
    if not rows:
        settled = yield from _settle_due(now)
        if settled.anything and not settled.more_expired:
            rows = yield from fetch_all(_claim_sql(*shape, unless_due=False), limit=limit, **attempt, **lanes)
    rows.sort(key=_claim_order)  # RETURNING has no order
    if rows and not facts.writes_in_with:
        yield from execute_many(
            _INSERT_ATTEMPT, [{"job_id": row["id"], "attempt": row["attempt"], **attempt} for row in rows]
        )
    return Claimed([Claim.of(Job.from_row(row), worker_id, expires) for row in rows], settled.more_due)


@guarded
def start_recorded(now: int, job_id: str, new: NewJob, prompt: Text, worker_id: str, lease: int) -> Operation[Claim]:
    """(new) → running, owned by the caller, who is its only attempt.

    Raises:
        SessionNotFound: There is no such session.
        OutputError: The prompt's file was written too long ago to be named now.
    """
    yield from rescue_due(now)
    begun: dict[str, Value] = {"status": "running", "attempt": 1, "attempts_used": 1, "started_at": now}
    job = yield from insert(new_row(now, job_id, new, prompt) | begun)
    expires = now + lease
    yield from execute(
        _INSERT_ATTEMPT, job_id=job_id, attempt=1, worker_id=worker_id, lease_expires_at=expires, now=now
    )
    return Claim.of(job, worker_id, expires)


_HOLD = f"""
    UPDATE background_jobs SET status = 'failed', finished_at = :now, error_type = '{CALL_UNKNOWN}',
        error_message = 'its process ended while a call was under way: see what became of it, then retry the job'
    WHERE id = :job_id AND attempt = :attempt AND status IN ('idle', 'failed') AND EXISTS (
        SELECT 1 FROM api_calls
        WHERE job_id = :job_id AND api_calls.attempt = :attempt AND api_calls.status = 'unknown'
            AND on_unknown = 'hold')
"""
"""Of a job whose attempt was just ended."""


@guarded
def rescue(now: int) -> Operation[int]:
    """End up to `MAX_DUE` attempts whose lease has ended; return how many.

    Their jobs become idle again, failed when their attempts are used up, canceled when that was asked for. Calls that
    were under way are `unknown` by now, as the database notes by itself; a job that is to be held then fails.
    """
    facts = yield from dialect()
    # Where rows can be locked, a job that someone else has locked is passed over as well, or every claim would wait.
    with_jobs = "JOIN background_jobs ON background_jobs.id = job_attempts.job_id" if facts.lock_rows else ""
    lost = yield from fetch_all(
        f"""
        WITH ended AS MATERIALIZED (
            SELECT job_id, job_attempts.attempt FROM job_attempts {with_jobs}
            WHERE job_attempts.finished_at IS NULL AND lease_expires_at <= :now
            ORDER BY lease_expires_at LIMIT {MAX_DUE} {facts.lock_rows})
        UPDATE job_attempts SET finished_at = :now, outcome = '{AttemptOutcome.LOST}'
        WHERE finished_at IS NULL AND (job_id, attempt) IN (SELECT job_id, attempt FROM ended)
        RETURNING job_id, attempt
        """,
        now=now,
    )
    used_up = "cancel_requested_at IS NULL AND attempts_used >= max_attempts"
    keys = [{"now": now, "job_id": row["job_id"], "attempt": row["attempt"]} for row in lost]
    yield from execute_many(
        f"""
        UPDATE background_jobs SET
            status = CASE WHEN cancel_requested_at IS NOT NULL THEN 'canceled'
                          WHEN attempts_used >= max_attempts THEN 'failed' ELSE 'idle' END,
            finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR attempts_used >= max_attempts THEN :now END,
            error_type = CASE WHEN {used_up} THEN '{WORKER_LOST}' ELSE error_type END,
            error_message = CASE WHEN {used_up} THEN 'the lease of its last attempt expired' ELSE error_message END,
            updated_at = :now
        WHERE {HELD}
        """,
        keys,
    )
    yield from execute_many(_HOLD, keys)
    return len(lost)


@guarded
def expire(now: int) -> Operation[int]:
    """Idle or scheduled → canceled for up to `MAX_DUE` jobs whose `expires_at` has passed; return how many."""
    facts = yield from dialect()
    expired = yield from fetch_all(
        f"""
        WITH due AS MATERIALIZED (
            SELECT id FROM background_jobs WHERE expires_at <= :now AND status IN ('idle', 'scheduled')
            ORDER BY expires_at LIMIT {MAX_DUE} {facts.lock_rows})
        UPDATE background_jobs SET status = 'canceled', finished_at = :now, updated_at = :now,
            error_type = '{EXPIRED}', error_message = '{EXPIRED_MESSAGE}'
        WHERE status IN ('idle', 'scheduled') AND id IN (SELECT id FROM due)
        RETURNING 1
        """,
        now=now,
    )
    return len(expired)


@guarded
def rescue_due(now: int) -> Operation[int]:
    """Rescue leases that have ended and cancel jobs that have expired, at the cost of a look if there are none.

    Returns:
        How many there were.
    """
    due = yield from fetch_one(NEXT_DUE)
    settled = 0
    if due and _has_come(due["lease"], now):
        settled += yield from rescue(now)
    if due and (settled or _has_come(due["expires_at"], now)):  # a rescued job may have expired
        settled += yield from expire(now)
    return settled


@guarded_if(lambda _job_id, changes: changes.metadata is None)
def update(now: int, job_id: str, changes: jobs.Changes) -> Operation[Job]:
    """As `jobs.update`, but a job whose lease has ended waits by now, and one that has expired does not."""
    yield from rescue_due(now)
    return (yield from jobs.update(now, job_id, changes))


@guarded
def cancel(now: int, job_id: str) -> Operation[Job]:
    """As `jobs.cancel`, but a job whose holder is gone is not asked to end: nobody would hear it."""
    yield from rescue_due(now)
    return (yield from jobs.cancel(now, job_id))


@guarded
def retry(now: int, job_id: str) -> Operation[Job]:
    """As `jobs.retry`, but a job whose last holder is gone has failed by now."""
    yield from rescue_due(now)
    return (yield from jobs.retry(now, job_id))


@guarded
def promote(now: int) -> Operation[int]:
    """Scheduled → idle for up to `MAX_DUE` jobs whose `run_at` has passed; return how many."""
    facts = yield from dialect()
    promoted = yield from fetch_all(
        f"""
        WITH due AS MATERIALIZED (
            SELECT id FROM background_jobs WHERE status = 'scheduled' AND run_at <= :now
            ORDER BY run_at LIMIT {MAX_DUE} {facts.lock_rows})
        UPDATE background_jobs SET status = 'idle', updated_at = :now
        WHERE status = 'scheduled' AND id IN (SELECT id FROM due)
        RETURNING 1
        """,
        now=now,
    )
    return len(promoted)


@guarded
def heartbeat(now: int, claims: Sequence[tuple[str, int]], lease: int) -> Operation[list[Heartbeat]]:
    """Renew leases, given as (job id, attempt), for `lease` milliseconds from now; one answer each, in order.

    A lease whose row someone else is just changing is not renewed, but is not lost either: the next beat renews it.
    """
    facts = yield from dialect()
    alive: dict[tuple[str, int], bool] = {}
    for start in range(0, len(claims), MAX_ROWS):
        part = claims[start : start + MAX_ROWS]
        renewed = yield from fetch_all(_heartbeat_sql(len(part), facts), expires=now + lease, **_keys(part))
        alive |= _answers(renewed)
        if missing := [key for key in part if key not in alive]:
            alive |= _answers((yield from fetch_all(_running_sql(len(missing)), **_keys(missing))))
    return [
        Heartbeat(
            job_id=job_id,
            attempt=attempt,
            extended=(job_id, attempt) in alive,
            cancel_requested=alive.get((job_id, attempt), False),
        )
        for job_id, attempt in claims
    ]


def cancel_requests(_now: int, claims: Sequence[tuple[str, int]]) -> Operation[list[tuple[str, int]]]:
    """Return those claims, given as (job id, attempt), whose jobs someone wants canceled."""
    wanted: list[tuple[str, int]] = []
    for start in range(0, len(claims), MAX_ROWS):
        part = claims[start : start + MAX_ROWS]
        running = yield from fetch_all(_running_sql(len(part)), **_keys(part))
        wanted += [key for key, requested in _answers(running).items() if requested]
    return wanted


def _keys(claims: Sequence[tuple[str, int]]) -> dict[str, Value]:
    ids, attempts = zip(*claims, strict=True)
    return {**numbered("id", ids), **numbered("n", attempts)}


def _answers(rows: list[Row]) -> dict[tuple[str, int], bool]:
    return {(row["job_id"], row["attempt"]): bool(row["cancel_requested"]) for row in rows}


_NOTHING_SETTLED = Settled(anything=False, more_due=False, more_expired=False)


def _settle_due(now: int) -> Operation[Settled]:
    """Rescue, cancel and promote what fell due, and forget the pauses that have ended."""
    due = yield from fetch_one(NEXT_DUE)
    if due is None or not any(_has_come(time, now) for time in due.values()):
        return _NOTHING_SETTLED
    rescued = expired = promoted = 0
    if _has_come(due["lease"], now):
        rescued = yield from rescue(now)
    if rescued or _has_come(due["expires_at"], now):  # a rescued job may have expired
        expired = yield from expire(now)
    if _has_come(due["run_at"], now):
        promoted = yield from promote(now)
    if _has_come(due["pause"], now):
        yield from pausing.forget_ended(now)
    return Settled(anything=True, more_due=MAX_DUE in {rescued, expired, promoted}, more_expired=expired == MAX_DUE)


def _has_come(time: int | None, now: int) -> bool:
    return time is not None and time <= now


def _claim_order(row: Row) -> tuple[int, int, str]:
    return -row["priority"], row["run_at"], row["id"]


_DUE = (
    ("lease_expires_at", "job_attempts WHERE finished_at IS NULL"),
    ("run_at", "background_jobs WHERE status = 'scheduled'"),
    ("expires_at", "background_jobs WHERE expires_at IS NOT NULL AND status IN ('idle', 'scheduled')"),
)


def _nothing_due(facts: Dialect) -> str:
    """Return the condition that nothing is to be rescued, promoted or canceled first.

    PostgreSQL takes it that a third of the jobs are due, so that to read the table until one is found were cheaper than
    their index, and reads all of it, as none is (11 ms for 200,000 jobs, measured): it is asked for the first of each.
    """
    if facts.writes_in_with:
        parts = [f"COALESCE((SELECT {time} FROM {rows} ORDER BY {time} LIMIT 1) > :now, TRUE)" for time, rows in _DUE]
    else:
        parts = [f"NOT EXISTS (SELECT 1 FROM {rows} AND {time} <= :now)" for time, rows in _DUE]
    return " AND ".join(parts)


_NOT_EXPIRED = "AND (candidate.expires_at IS NULL OR candidate.expires_at > :now)"


def _bound(limit: int) -> int:
    """Return a number that is not below a limit, and that many limits share."""
    bound: int = 8 ** math.ceil(math.log(limit, 8))
    return bound


@lru_cache(maxsize=256)
def _claim_sql(task_types: int, api_types: int, bound: int, facts: Dialect, *, unless_due: bool) -> str:
    """Return the text of a claim: the first few of each lane's own end of the index, merged.

    So its cost depends neither on the backlog nor on what other lanes hold.

    Where it can, it begins the attempts as well: the rows chosen are locked, so no other number can come between.

    `unless_due` lets it claim nothing while anything is to be rescued or promoted first: cheaper than to ask before.
    """
    conditions = [_nothing_due(facts)] if unless_due else []
    conditions += [
        f"lane.{column} IN ({', '.join(f':{name}{index}' for index in range(count))})"
        for column, name, count in (("task_type", "task", task_types), ("api_type", "api", api_types))
        if count
    ]
    conditions.append(pausing.NOT_PAUSED)
    candidates = f"""
        FROM background_jobs AS candidate
        WHERE candidate.status = 'idle' AND candidate.task_type = lane.task_type
            AND candidate.api_type = lane.api_type {"" if unless_due else _NOT_EXPIRED}
        ORDER BY candidate.priority DESC, candidate.run_at, candidate.id
    """
    begin = """
        UPDATE background_jobs SET
            status = 'running', attempt = attempt + 1, attempts_used = attempts_used + 1,
            started_at = :now, updated_at = :now, status_message = NULL
    """
    if facts.writes_in_with:
        text = _claim_locked(candidates, " AND ".join(conditions), begin, bound, facts)
    else:
        text = _claim_alone(candidates, " AND ".join(conditions), begin, bound)
    return f"{text} RETURNING {COLUMNS}"


_ORDER = "ORDER BY job.priority DESC, job.run_at, job.id"


def _claim_alone(candidates: str, conditions: str, begin: str, bound: int) -> str:
    """Return the text for a database that has one writer at a time.

    `=` serves for one job, without the temporary tables that `IN` makes (24 µs against 32, measured).
    """
    equals = "=" if bound == 1 else "IN"
    return f"""
        {begin} WHERE status = 'idle' AND id {equals} (
            SELECT job.id FROM lanes AS lane
            CROSS JOIN background_jobs AS job ON job.id {equals} (SELECT candidate.id {candidates} LIMIT :limit)
            WHERE {conditions} {_ORDER} LIMIT :limit)
    """


def _claim_locked(candidates: str, conditions: str, begin: str, bound: int, facts: Dialect) -> str:
    """Return the text for a database where others write meanwhile.

    A number bounds what it looks at, or PostgreSQL would plan it anew for each limit (460 µs, measured). What was
    chosen is locked, so it is found by its id alone: by its status as well, a server that has not counted the rows
    yet takes it that hardly any are idle, and reads all of those.
    """
    limit = "1" if bound == 1 else "(SELECT CAST(:limit AS BIGINT))"
    return f"""
        WITH chosen AS MATERIALIZED (
            SELECT job.id AS chosen_id, job.attempt + 1 AS next_attempt FROM lanes AS lane
            CROSS JOIN LATERAL (SELECT * FROM (
                SELECT candidate.id, candidate.attempt, candidate.priority, candidate.run_at
                {candidates} LIMIT {bound} {facts.lock_rows}) AS few LIMIT {limit}) AS job
            WHERE {conditions} {_ORDER} LIMIT {limit}),
        begun AS ({_ATTEMPT} SELECT chosen_id, next_attempt, :worker_id, :lease_expires_at, :now FROM chosen)
        {begin} FROM chosen WHERE id = chosen_id
    """


_CANCEL_REQUESTED = """EXISTS (
    SELECT 1 FROM background_jobs WHERE id = job_attempts.job_id AND cancel_requested_at IS NOT NULL
) AS cancel_requested"""


@lru_cache(maxsize=64)
def _heartbeat_sql(count: int, facts: Dialect) -> str:
    held = _held_sql(count)
    if facts.lock_rows:
        held = f"(job_id, attempt) IN (SELECT job_id, attempt FROM job_attempts WHERE {held} {facts.lock_rows})"
    return f"""
        UPDATE job_attempts SET lease_expires_at = :expires WHERE {held}
        RETURNING job_id, attempt, {_CANCEL_REQUESTED}
    """


@lru_cache(maxsize=64)
def _running_sql(count: int) -> str:
    return f"SELECT job_id, attempt, {_CANCEL_REQUESTED} FROM job_attempts WHERE {_held_sql(count)}"


def _held_sql(count: int) -> str:
    # The ids alone as well, because SQLite finds rows by the first of a pair only if it is asked for it alone;
    # and `outcome`, because by `finished_at` it would rather read all running attempts.
    ids = ", ".join(f":id{index}" for index in range(count))
    pairs = ", ".join(f"(:id{index}, :n{index})" for index in range(count))
    return f"outcome IS NULL AND job_id IN ({ids}) AND (job_id, attempt) IN (VALUES {pairs})"
