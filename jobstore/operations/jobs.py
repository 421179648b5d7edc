"""Operations on `background_jobs`: enqueue, read, change, cancel, retry, clear."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from uuid_utils import uuid7

from jobstore.clock import to_milliseconds
from jobstore.encoding import dump_json, load_metadata
from jobstore.errors import (
    ConstraintFailed,
    InvalidJob,
    InvalidTransition,
    JobNotFound,
    OutputError,
    SessionNotFound,
    TextsPruned,
)
from jobstore.lifecycle import EXPIRED, TERMINAL, WAITING, JobStatus
from jobstore.models import Job, NewJob, Text
from jobstore.sql import (
    Operation,
    Row,
    Statement,
    Value,
    dialect,
    execute,
    fetch_all,
    fetch_one,
    guarded,
    guarded_if,
    placeholders,
)

INLINE_LIMIT = 65536
"""Bytes up to which a text stays in its row, unless the store is opened with another limit."""
MAX_ROWS = 1000
"""An operation changes no more rows than this: one that promoted 200,000 held the writer for 4.7 s (measured)."""
MAX_FILE_AGE = 12 * 3600 * 1000
"""Milliseconds after which a file's path is no longer committed: a sweep removes unnamed files after 24 hours."""

LIGHT_COLUMNS = ", ".join(name for name in Job.model_fields if name not in {"prompt", "response"})
COLUMNS = ", ".join(Job.model_fields)

_DEFAULTS: dict[str, Any] = dict.fromkeys(Job.model_fields) | {
    "priority": 0, "attempt": 0, "attempts_used": 0, "max_attempts": 3, "cleared": 0, "metadata": "{}",
}  # fmt: skip
"""The schema's own."""
_OPTIONAL = ("session_id", "model_used", "priority", "max_attempts", "timeout", "idempotency_key")

EXPIRED_MESSAGE = "it still waited at its expires_at"

WAITING_LIST = ", ".join(f"'{status}'" for status in WAITING)
TERMINAL_LIST = ", ".join(f"'{status}'" for status in TERMINAL)


SET_CANCELED = """
    cancel_requested_at = COALESCE(cancel_requested_at, :now),
    finished_at = CASE WHEN status = 'running' THEN NULL ELSE :now END,
    status = CASE WHEN status = 'running' THEN 'running' ELSE 'canceled' END,
    updated_at = :now
"""
SET_RETRIED = """
    status = 'idle', run_at = :now, updated_at = :now, finished_at = NULL, attempts_used = 0,
    cancel_requested_at = NULL, error_type = NULL, error_message = NULL, status_message = NULL, cleared = 0,
    expires_at = CASE WHEN expires_at > :now THEN expires_at END
"""


@guarded
def enqueue(now: int, job_id: str, new: NewJob, prompt: Text) -> Operation[Job]:
    """(new) → idle, or scheduled if `run_at` lies ahead. Returns the existing job of a key already used.

    One whose `expires_at` has passed is canceled at once, as if it had come in time and waited.

    Raises:
        SessionNotFound: There is no such session.
        OutputError: The prompt's file was written too long ago to be named now.
    """
    row = new_row(now, job_id, new, prompt)
    if new.run_at is not None:
        row["run_at"] = run_at = to_milliseconds(new.run_at)
        row["status"] = "scheduled" if run_at > now else "idle"
    if new.expires_at is not None:
        row["expires_at"] = expires_at = to_milliseconds(new.expires_at)
        if expires_at <= now:
            row |= _expired(now)
    return (yield from insert(row))


def _expired(now: int) -> dict[str, Value]:
    """Return the columns of a job that expires as it is written."""
    return {"status": "canceled", "finished_at": now, "error_type": EXPIRED, "error_message": EXPIRED_MESSAGE}


@guarded
def enqueue_new(now: int, new: NewJob) -> Operation[Job]:
    """Enqueue a job as a part of an operation of your own.

    Example:
        >>> def place_order(now: int, item: str) -> Operation[Job]:
        ...     yield from execute("INSERT INTO orders (item) VALUES (:item)", item=item)
        ...     return (yield from enqueue(now, NewJob(prompt=f"Order {item}", task_type="order", api_type="claude")))

    Raises:
        InvalidJob: The prompt belongs into a file, which an operation cannot write: `store.jobs.enqueue` can.
        SessionNotFound: There is no such session.
    """
    size = len(new.prompt.encode())
    facts = yield from dialect()
    if size > INLINE_LIMIT or ("\0" in new.prompt and not facts.holds_nul):
        raise InvalidJob("prompt", "is too large, or of characters that do not fit a row: use store.jobs.enqueue()")
    return (yield from enqueue(now, str(uuid7()), new, Text(new.prompt, size=size)))


def new_row(now: int, job_id: str, new: NewJob, prompt: Text) -> dict[str, Value]:
    """Return the columns of a job that begins idle now, without those that the schema's defaults serve for.

    An insert of half the columns takes three quarters of the time (measured).
    """
    check_age(now, prompt)
    row: dict[str, Value] = {
        "id": job_id,
        "task_type": new.task_type,
        "api_type": new.api_type,
        "status": "idle",
        "run_at": now,
        "created_at": now,
        "updated_at": now,
        "prompt_bytes": prompt.size,
        "prompt": "" if prompt.inline is None else prompt.inline,
    }
    for name in _OPTIONAL:
        value = getattr(new, name)
        if value != _DEFAULTS[name]:
            row[name] = value
    if new.metadata:
        row["metadata"] = dump_json("metadata", new.metadata)
    if prompt.file_path is not None:
        row |= {"prompt_file_path": prompt.file_path, "prompt_sha256": prompt.sha256}
    return row


def insert(row: dict[str, Value]) -> Operation[Job]:
    """Insert a job's row, or return the job that already has its idempotency key."""
    key = row.get("idempotency_key")
    sql = _insert_sql(tuple(row))
    try:
        if key is None:
            yield Statement(sql, row, "count")
        elif (yield Statement(sql, row, "one")) is None:
            existing = yield from fetch_one(
                f"SELECT {COLUMNS} FROM background_jobs WHERE idempotency_key = :key", key=key
            )
            if existing is None:  # pruned between the two, where others write at the same time
                return (yield from insert(row))
            return Job.from_row(existing)
    except ConstraintFailed as error:
        if error.kind == "foreign_key":
            raise SessionNotFound(str(row["session_id"])) from error
        raise
    return Job.from_row(row, _DEFAULTS)


@lru_cache(maxsize=256)
def _insert_sql(names: tuple[str, ...]) -> str:
    columns, values = ", ".join(names), ", ".join(f":{name}" for name in names)
    sql = f"INSERT INTO background_jobs ({columns}) VALUES ({values})"
    if "idempotency_key" in names:
        sql += " ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING id"
    return sql


def check_age(now: int, text: Text) -> None:
    """Refuse to name a file that a sweep may take away at any time.

    Raises:
        OutputError: It was written more than twelve hours ago.
    """
    if text.written_at is not None and now - text.written_at > MAX_FILE_AGE:
        raise OutputError("the file waited too long to be recorded: call again", text.file_path)


@guarded
def enqueue_many(now: int, jobs: Sequence[tuple[str, NewJob, Text]]) -> Operation[list[Job]]:
    """Enqueue several, all or none, in the order given."""
    enqueued = []
    for job_id, new, prompt in jobs:
        enqueued.append((yield from enqueue(now, job_id, new, prompt)))
    return enqueued


def get(_now: int, job_id: str) -> Operation[Job]:
    """Return a job, with the texts that lie in its row.

    Raises:
        JobNotFound: There is no such job.
    """
    row = yield from fetch_one(f"SELECT {COLUMNS} FROM background_jobs WHERE id = :job_id", job_id=job_id)
    return Job.from_row(_present(row, job_id))


def refuse_pruned(job: Job) -> None:
    """Refuse a job whose texts retention has removed.

    Raises:
        TextsPruned: It has.
    """
    if job.texts_pruned_at is not None:
        raise TextsPruned(job.id, job.texts_pruned_at)


def status(_now: int, job_id: str) -> Operation[tuple[JobStatus, int]]:
    """Return a job's status and the number of its latest attempt.

    Raises:
        JobNotFound: There is no such job.
    """
    row = yield from fetch_one("SELECT status, attempt FROM background_jobs WHERE id = :job_id", job_id=job_id)
    found = _present(row, job_id)
    return JobStatus(found["status"]), found["attempt"]


@guarded
def cancel(now: int, job_id: str) -> Operation[Job]:
    """Idle or scheduled → canceled. A running job is only asked to end.

    Raises:
        JobNotFound: There is no such job.
        InvalidTransition: It has ended already.
    """
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET {SET_CANCELED}
        WHERE id = :job_id AND status IN ('running', {WAITING_LIST})
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        job_id=job_id,
    )
    return (yield from _changed(row, job_id, JobStatus.CANCELED))


@guarded
def cancel_session(now: int, session_id: str) -> Operation[int]:
    """Cancel up to `MAX_ROWS` unfinished jobs of a session that are not asked to end yet; return how many.

    Raises:
        SessionNotFound: There is no such session.
    """
    if (yield from fetch_one("SELECT 1 FROM sessions WHERE id = :session_id", session_id=session_id)) is None:
        raise SessionNotFound(session_id)
    return (
        yield from execute(
            f"""
            UPDATE background_jobs SET {SET_CANCELED}
            WHERE id IN (
                SELECT id FROM background_jobs
                WHERE session_id = :session_id AND status IN ('running', {WAITING_LIST})
                    AND cancel_requested_at IS NULL
                LIMIT {MAX_ROWS})
            """,
            now=now,
            session_id=session_id,
        )
    )


@guarded
def retry(now: int, job_id: str) -> Operation[Job]:
    """failed, canceled or completed → idle, with all its attempts before it again.

    What it answered before stays readable until a new answer is recorded. An `expires_at` that has passed is dropped.

    Raises:
        JobNotFound: There is no such job.
        InvalidTransition: It has not ended.
        TextsPruned: Its prompt is gone.
    """
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET {SET_RETRIED}
        WHERE id = :job_id AND status IN ({TERMINAL_LIST}) AND texts_pruned_at IS NULL
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        job_id=job_id,
    )
    if row is None:
        refuse_pruned((yield from get(now, job_id)))
    return (yield from _changed(row, job_id, JobStatus.IDLE))


class Changes(NamedTuple):
    """What is to change about a waiting job; None is nothing. Times are in milliseconds."""

    priority: int | None = None
    run_at: int | Literal["now"] | None = None
    metadata: dict[str, Any] | None = None
    """Merged into what there is."""
    max_attempts: int | None = None
    expires_at: int | Literal["never"] | None = None


@guarded_if(lambda _job_id, changes: changes.metadata is None)
def update(now: int, job_id: str, changes: Changes) -> Operation[Job]:
    """Change a job that waits; a new `run_at` makes it idle or scheduled, an `expires_at` that has passed canceled.

    Raises:
        JobNotFound: There is no such job.
        InvalidTransition: It does not wait.
        InvalidJob: It has used as many attempts as it would have.
    """
    columns: dict[str, Value] = {}
    wanted = JobStatus.IDLE
    for name in ("priority", "max_attempts"):
        if (value := getattr(changes, name)) is not None:
            columns[name] = value
    if changes.metadata is not None:
        columns["metadata"] = yield from _merged_metadata(job_id, changes.metadata)
    if changes.run_at is not None:
        run_at = now if changes.run_at == "now" else changes.run_at
        wanted = JobStatus.SCHEDULED if run_at > now else JobStatus.IDLE
        columns |= {"run_at": run_at, "status": wanted.value}
    if changes.expires_at == "never":
        columns["expires_at"] = None
    elif changes.expires_at is not None:
        columns |= {"expires_at": changes.expires_at, **(_expired(now) if changes.expires_at <= now else {})}
    fewer = "AND attempts_used < :max_attempts" if "max_attempts" in columns else ""
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET {"".join(f"{name} = :{name}, " for name in columns)} updated_at = :now
        WHERE id = :job_id AND status IN ({WAITING_LIST}) {fewer}
        RETURNING {LIGHT_COLUMNS}
        """,
        **columns,
        now=now,
        job_id=job_id,
    )
    if row is None:
        present, _ = yield from status(now, job_id)
        if present in WAITING:
            raise InvalidJob("max_attempts", "must be above the attempts that the job has used: or else cancel it")
    return (yield from _changed(row, job_id, wanted))


def _merged_metadata(job_id: str, changes: dict[str, Any]) -> Operation[str]:
    row = yield from fetch_one("SELECT metadata FROM background_jobs WHERE id = :job_id", job_id=job_id)
    return dump_json("metadata", load_metadata(_present(row, job_id)["metadata"]) | changes, InvalidJob)


@guarded
def clear(now: int, job_ids: Sequence[str]) -> Operation[int]:
    """Hide jobs from lists; return how many were not hidden before."""
    names, parameters = placeholders("id", job_ids)
    return (
        yield from execute(
            f"UPDATE background_jobs SET cleared = 1, updated_at = :now WHERE id IN ({names}) AND cleared = 0",
            now=now,
            **parameters,
        )
    )


def clear_finished(now: int, older_than: int, after: tuple[int, str]) -> Operation[tuple[int, int, str] | None]:
    """Hide the next jobs that ended at least `older_than` milliseconds ago, by time and id from `after` on.

    Returns:
        How many were hidden and where to go on, or None at the end.
    """
    last = yield from fetch_all(
        f"""
        SELECT finished_at, id FROM background_jobs
        WHERE finished_at <= :until AND (finished_at, id) > (:finished_at, :id)
        ORDER BY finished_at, id LIMIT {MAX_ROWS}
        """,
        until=now - older_than,
        finished_at=after[0],
        id=after[1],
    )
    if not last:
        return None
    hidden = yield from clear(now, [row["id"] for row in last])
    return hidden, last[-1]["finished_at"], last[-1]["id"]


def file_paths_named(_now: int, paths: Sequence[str]) -> Operation[set[str]]:
    """Return those of the paths that any row names."""
    names, parameters = placeholders("path", paths)
    rows = yield from fetch_all(
        f"""
        SELECT prompt_file_path AS path FROM background_jobs WHERE prompt_file_path IN ({names})
        UNION SELECT output_file_path FROM background_jobs WHERE output_file_path IN ({names})
        UNION SELECT output_file_path FROM job_attempts WHERE output_file_path IN ({names})
        """,
        **parameters,
    )
    return {row["path"] for row in rows}


def next_due(_now: int) -> Operation[int | None]:
    """Return when the next lease ends, job falls due or expires, or pause ends, in milliseconds."""
    row = yield from fetch_one(NEXT_DUE)
    times = [time for time in (row or {}).values() if time is not None]
    return min(times, default=None)


NEXT_DUE = """
    SELECT (SELECT MIN(lease_expires_at) FROM job_attempts WHERE finished_at IS NULL) AS lease,
           (SELECT MIN(run_at) FROM background_jobs WHERE status = 'scheduled') AS run_at,
           (SELECT MIN(expires_at) FROM background_jobs
            WHERE expires_at IS NOT NULL AND status IN ('idle', 'scheduled')) AS expires_at,
           (SELECT MIN(until) FROM pauses) AS pause
"""


def _present(row: Row | None, job_id: str) -> Row:
    if row is None:
        raise JobNotFound(job_id)
    return row


def _changed(row: Row | None, job_id: str, wanted: JobStatus) -> Operation[Job]:
    """Return the changed job, or say why no row was changed."""
    if row is None:
        present, _ = yield from status(0, job_id)
        raise InvalidTransition(job_id, present, wanted)
    return Job.from_row(row)
