"""Operations on `job_attempts`: all that the holder of a claim reports.

A running job's row and its attempt's row change in one operation, so a guard on the job's row,
`status = 'running' AND attempt = :attempt`, is a guard on the lease.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from jobstore.encoding import dump_json, load_metadata
from jobstore.errors import LeaseLost, OutputError
from jobstore.lifecycle import AttemptOutcome, JobStatus
from jobstore.models import Attempt, Claim, Job, Text, Usage
from jobstore.operations.jobs import COLUMNS, LIGHT_COLUMNS, check_age
from jobstore.sql import Operation, Row, Value, dialect, execute, fetch_all, fetch_each, fetch_one, guarded, guarded_if

ATTEMPT_COLUMNS = ", ".join(Attempt.model_fields)

HELD = "id = :job_id AND attempt = :attempt AND status = 'running'"
_USAGE = ", ".join(Usage.model_fields)
_SET_USAGE = ", ".join(f"{name} = COALESCE(:{name}, {name})" for name in Usage.model_fields)


@guarded_if(lambda _claim, _response, _usage, metadata: not metadata)
def complete(
    now: int,
    claim: Claim,
    response: Text,
    usage: Usage | None,
    metadata: dict[str, object] | None,
    *,
    keep_output: bool = True,
) -> Operation[Job]:
    """Running → completed. A late answer counts while no later attempt has begun and nobody canceled the job.

    `keep_output` says whether the attempt's streamed file stays; if not, its text is the inline response.

    Raises:
        LeaseLost: The attempt has ended in another way.
        OutputError: The response's file was written too long ago to be named now.
    """
    check_age(now, response)
    parameters: dict[str, Value] = {
        "job_id": claim.job.id,
        "attempt": claim.job.attempt,
        "response": response.inline,
        "output_file_path": response.file_path,
        "output_bytes": response.size,
        "output_sha256": response.sha256,
        "metadata": (yield from _merged_metadata(claim, metadata)),
        "now": now,
    }
    if usage is not None:
        parameters |= usage.model_dump()
    facts = yield from dialect()
    sql = _complete_sql(with_usage=usage is not None, keep_output=keep_output)
    if facts.takes_arrays:
        row = yield from fetch_each(sql.each, **parameters)
    else:
        row = yield from fetch_one(sql.held, **parameters)
        if row is not None:
            yield from execute(sql.attempt, **parameters)
    if row is not None:
        return claim.job.completed(now, row, response)
    if (yield from fetch_one(sql.given_up, **parameters)) is not None:
        yield from execute(sql.attempt, **parameters)
    # More than a completion changes may have changed since the claim.
    return (yield from _as_completed(claim))


class _Completion(NamedTuple):
    """The texts of a completion. They return only what may have changed since the claim.

    Reading whole rows back cost a third of a completion.
    """

    held: str
    """For a lease that is held."""
    given_up: str
    """For one that was given up."""
    attempt: str
    """The attempt's own part."""
    each: str
    """The first and the last in one, for many at once: that saves two fifths of the server's time, and half of ours."""


@cache
def _complete_sql(*, with_usage: bool, keep_output: bool) -> _Completion:
    update = f"""
        UPDATE background_jobs SET
            status = 'completed', finished_at = :now, updated_at = :now, error_type = NULL, error_message = NULL,
            {f"{_SET_USAGE}, " if with_usage else ""} metadata = COALESCE(:metadata, metadata),
            response = :response, output_file_path = :output_file_path, output_bytes = :output_bytes,
            output_sha256 = :output_sha256
    """
    held = f"{update} WHERE {HELD} RETURNING {_COMPLETED}"
    given_up = f"""
        {update}
        WHERE id = :job_id AND attempt = :attempt AND status IN ('idle', 'scheduled', 'failed', 'canceled')
            AND cancel_requested_at IS NULL AND EXISTS (
                SELECT 1 FROM job_attempts WHERE job_id = :job_id AND attempt = :attempt AND outcome = 'lost')
        RETURNING {_COMPLETED}
    """
    output = _KEPT_OUTPUT if keep_output else "output_bytes = :output_bytes, output_file_path = :output_file_path"
    end = f"UPDATE job_attempts SET finished_at = :now, outcome = 'completed', {output}"
    this = "job_id = :job_id AND attempt = :attempt"
    return _Completion(
        held,
        given_up,
        f"{end} WHERE {this}",
        _each(update, f"{end} FROM job AS given WHERE {this}", with_usage=with_usage),
    )


def _each(update: str, end: str, *, with_usage: bool) -> str:
    """Return the text that ends many attempts, and their jobs, whose leases are held.

    The LIMIT, which it does not know, lets the server count on few of them and so on the indexes, however small the
    tables are when it makes the plan that it keeps.
    """
    given = _GIVEN | (_GIVEN_USAGE if with_usage else {})
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in given.items())
    columns = ", ".join(f"{name}_" for name in given)
    return f"""
        WITH given AS (
            SELECT * FROM unnest({arrays}) WITH ORDINALITY AS given ({columns}, number)
            LIMIT (SELECT cardinality(CAST(:job_id AS TEXT[])))),
        job AS (
            {_of_given(update)} FROM given WHERE {_of_given(HELD)}
            RETURNING job_id_, attempt_, now_, output_file_path_, output_bytes_, number, {_COMPLETED})
        {_of_given(end)} RETURNING number, {_COMPLETED}
    """


def _of_given(sql: str) -> str:
    return re.sub(r":(\w+)", r"given.\1_", sql)


_GIVEN = {
    "job_id": "TEXT",
    "attempt": "BIGINT",
    "now": "BIGINT",
    "response": "TEXT",
    "output_file_path": "TEXT",
    "output_bytes": "BIGINT",
    "output_sha256": "TEXT",
    "metadata": "JSON",
}
_GIVEN_USAGE = {name: "DOUBLE PRECISION" if name == "cost" else "BIGINT" for name in Usage.model_fields}
_COMPLETED = f"status_message, cancel_requested_at, cleared, metadata, {_USAGE}"
_KEPT_OUTPUT = """
    output_bytes = CASE WHEN CAST(:output_file_path AS TEXT) IS NULL AND output_file_path IS NOT NULL
                        THEN output_bytes ELSE COALESCE(:output_bytes, output_bytes) END,
    output_file_path = COALESCE(:output_file_path, output_file_path)
"""


@guarded
def fail(
    now: int,
    claim: Claim,
    error_type: str | None,
    error_message: str,
    retry_in: int | None,
    error_traceback: str | None = None,
) -> Operation[Job]:
    """Running → scheduled while `retry_in` milliseconds are given and attempts remain, else failed.

    A job that was asked to end becomes canceled.

    Raises:
        LeaseLost: The attempt has ended.
    """
    again = "cancel_requested_at IS NULL AND attempts_used < max_attempts" if retry_in is not None else "1 = 0"
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET
            status = CASE WHEN {again} THEN 'scheduled'
                          WHEN cancel_requested_at IS NOT NULL THEN 'canceled' ELSE 'failed' END,
            run_at = CASE WHEN {again} THEN :run_at ELSE run_at END,
            finished_at = CASE WHEN {again} THEN NULL ELSE :now END,
            error_type = :error_type, error_message = :error_message, updated_at = :now
        WHERE {HELD}
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        run_at=now + (retry_in or 0),
        error_type=error_type,
        error_message=error_message,
        **_key(claim),
    )
    error = _Error(error_type, error_message, error_traceback)
    return (yield from _ended(now, claim, row, AttemptOutcome.FAILED, error))


@guarded
def acknowledge_cancel(now: int, claim: Claim) -> Operation[None]:
    """Note that the holder of a claim has heard that its job is to be canceled; the first time counts."""
    yield from execute(
        """
        UPDATE job_attempts SET cancel_acknowledged_at = :now
        WHERE job_id = :job_id AND attempt = :attempt AND finished_at IS NULL AND cancel_acknowledged_at IS NULL
        """,
        now=now,
        **_key(claim),
    )


@guarded
def snooze(now: int, claim: Claim, delay: int) -> Operation[Job]:
    """Running → scheduled in `delay` milliseconds, giving the attempt back; canceled if that was asked for.

    Raises:
        LeaseLost: The attempt has ended.
    """
    return (yield from _give_back(now, claim, JobStatus.SCHEDULED, AttemptOutcome.SNOOZED, now + delay))


@guarded
def release(now: int, claim: Claim) -> Operation[Job]:
    """Running → idle at once, giving the attempt back; canceled if that was asked for.

    Raises:
        LeaseLost: The attempt has ended.
    """
    return (yield from _give_back(now, claim, JobStatus.IDLE, AttemptOutcome.RELEASED, None))


def release_many(now: int, claims: Sequence[Claim]) -> Operation[None]:
    """Release claims, passing over those that have ended.

    Not in turns with others: a claim that is made after this shall find all of them.
    """
    for one in claims:
        try:
            yield from release(now, one)
        except LeaseLost:
            continue


@guarded
def cancel_claimed(now: int, claim: Claim, reason: str) -> Operation[Job]:
    """Running → canceled, by the one who holds the claim.

    Raises:
        LeaseLost: The attempt has ended.
    """
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET status = 'canceled', finished_at = :now, updated_at = :now,
            cancel_requested_at = COALESCE(cancel_requested_at, :now), status_message = :reason
        WHERE {HELD}
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        reason=reason,
        **_key(claim),
    )
    return (yield from _ended(now, claim, row, AttemptOutcome.CANCELED, _Error(message=reason)))


@guarded_if(lambda _claim, _message, _usage, metadata: not metadata)
def progress(
    now: int, claim: Claim, status_message: str | None, usage: Usage | None, metadata: dict[str, object] | None
) -> Operation[Job]:
    """Note how a running job gets on.

    Raises:
        LeaseLost: The attempt has ended.
    """
    merged = yield from _merged_metadata(claim, metadata)
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET updated_at = :now, {_SET_USAGE},
            status_message = COALESCE(:status_message, status_message), metadata = COALESCE(:metadata, metadata)
        WHERE {HELD}
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        status_message=status_message,
        metadata=merged,
        **_usage(usage),
        **_key(claim),
    )
    return Job.from_row(_held(row, claim))


def open_output(now: int, claim: Claim, file: Text) -> Operation[str | None]:
    """Name the file that a running attempt streams into, and return its path.

    Raises:
        LeaseLost: The attempt has ended.
        OutputError: The attempt has an output already, or the file was made too long ago to be named now.
    """
    check_age(now, file)
    attempt = yield from get_attempt(now, claim.job_id, claim.attempt)
    if attempt is None or attempt.finished_at is not None:
        raise LeaseLost(claim.job_id, claim.attempt)
    if attempt.output_file_path is not None:
        raise OutputError("this attempt has an output already: write all of it in one", attempt.output_file_path)
    yield from execute(
        """
        UPDATE job_attempts SET output_file_path = :path, output_bytes = 0
        WHERE job_id = :job_id AND attempt = :attempt AND finished_at IS NULL
        """,
        path=file.file_path,
        **_key(claim),
    )
    return file.file_path


@guarded
def close_output(_now: int, claim: Claim, path: str, size: int) -> Operation[None]:
    """Note how many bytes an attempt has streamed, if the file that it streamed into is still its output."""
    yield from execute(
        """
        UPDATE job_attempts SET output_bytes = :size
        WHERE job_id = :job_id AND attempt = :attempt AND output_file_path = :path
        """,
        path=path,
        size=size,
        **_key(claim),
    )


@guarded
def take_back_output(_now: int, claim: Claim, path: str) -> Operation[str | None]:
    """Forget a file that was named for a caller who was cancelled before writing into it; return its path if so."""
    forgotten = yield from execute(
        """
        UPDATE job_attempts SET output_file_path = NULL, output_bytes = NULL
        WHERE job_id = :job_id AND attempt = :attempt AND output_file_path = :path
        """,
        path=path,
        **_key(claim),
    )
    return path if forgotten else None


def attempts(_now: int, job_id: str) -> Operation[list[Attempt]]:
    """Return a job's attempts, the first first."""
    rows = yield from fetch_all(
        f"SELECT {ATTEMPT_COLUMNS} FROM job_attempts WHERE job_id = :job_id ORDER BY attempt", job_id=job_id
    )
    return [Attempt.from_row(row) for row in rows]


def get_attempt(_now: int, job_id: str, attempt: int) -> Operation[Attempt | None]:
    """Return one attempt at a job."""
    row = yield from fetch_one(
        f"SELECT {ATTEMPT_COLUMNS} FROM job_attempts WHERE job_id = :job_id AND attempt = :attempt",
        job_id=job_id,
        attempt=attempt,
    )
    return None if row is None else Attempt.from_row(row)


def _key(claim: Claim) -> dict[str, Value]:
    return {"job_id": claim.job.id, "attempt": claim.job.attempt}


def _usage(usage: Usage | None) -> dict[str, Value]:
    return (usage or Usage()).model_dump()


def _held(row: Row | None, claim: Claim) -> Row:
    if row is None:
        raise LeaseLost(claim.job_id, claim.attempt)
    return row


def _merged_metadata(claim: Claim, changes: dict[str, object] | None) -> Operation[str | None]:
    """Return the job's metadata with the changes, or None if there are none.

    Merged here because databases differ in it: SQLite's json_patch takes a null for a deletion.
    """
    if not changes:
        return None
    row = yield from fetch_one("SELECT metadata FROM background_jobs WHERE id = :job_id", job_id=claim.job_id)
    return dump_json("metadata", load_metadata(_held(row, claim)["metadata"]) | changes)


def _as_completed(claim: Claim) -> Operation[Job]:
    """Return the job if this very attempt has completed it."""
    row = yield from fetch_one(
        f"""
        SELECT {COLUMNS} FROM background_jobs
        WHERE id = :job_id AND attempt = :attempt AND status = 'completed'
        """,
        **_key(claim),
    )
    return Job.from_row(_held(row, claim))


def _give_back(
    now: int, claim: Claim, status: JobStatus, outcome: AttemptOutcome, run_at: int | None
) -> Operation[Job]:
    row = yield from fetch_one(
        f"""
        UPDATE background_jobs SET
            status = CASE WHEN cancel_requested_at IS NULL THEN '{status}' ELSE 'canceled' END,
            finished_at = CASE WHEN cancel_requested_at IS NULL THEN NULL ELSE :now END,
            run_at = COALESCE(:run_at, run_at), attempts_used = attempts_used - 1, updated_at = :now
        WHERE {HELD}
        RETURNING {LIGHT_COLUMNS}
        """,
        now=now,
        run_at=run_at,
        **_key(claim),
    )
    return (yield from _ended(now, claim, row, outcome))


class _Error(NamedTuple):
    """Why an attempt failed."""

    type: str | None = None
    message: str | None = None
    traceback: str | None = None


_NO_ERROR = _Error()


def _ended(
    now: int, claim: Claim, row: Row | None, outcome: AttemptOutcome, error: _Error = _NO_ERROR
) -> Operation[Job]:
    """End the attempt of a job whose own row was just changed, and return the job."""
    job = Job.from_row(_held(row, claim))
    if job.status is JobStatus.CANCELED:
        outcome = AttemptOutcome.CANCELED
    yield from execute(
        """
        UPDATE job_attempts SET finished_at = :now, outcome = :outcome, error_type = :error_type,
            error_message = :error_message, error_traceback = :error_traceback
        WHERE job_id = :job_id AND attempt = :attempt
        """,
        now=now,
        outcome=outcome.value,
        error_type=error.type,
        error_message=error.message,
        error_traceback=error.traceback,
        **_key(claim),
    )
    return job
