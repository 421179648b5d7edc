"""Operations that say where a job's texts lie."""

from __future__ import annotations

from typing import NamedTuple

from jobstore.lifecycle import AttemptOutcome, JobStatus
from jobstore.models import Attempt, Claim, Job, Text, Usage
from jobstore.operations import attempts, jobs
from jobstore.sql import Operation, fetch_one


class Source(NamedTuple):
    """Where a response lies: in the row, in a file, or nowhere."""

    inline: str | None
    path: str | None
    size: int | None = None
    """What a complete file must have; None for one that is still being written, or never was finished."""
    sha256: str | None = None

    def __repr__(self) -> str:
        """Name the file, never the text."""
        return f"<Source {self.path or 'in the row'}>"


class Moved(NamedTuple):
    """A job whose streamed answer has moved into its row, and the file that no row names any more, if any."""

    job: Job
    file_path: str | None


class Latest(NamedTuple):
    """A job and its latest attempt, of one moment."""

    job: Job
    attempt: Attempt | None


def latest(now: int, job_id: str) -> Operation[Latest]:
    """Return a job with its latest attempt.

    Raises:
        JobNotFound: There is no such job.
    """
    job = yield from jobs.get(now, job_id)
    return Latest(job, (yield from attempts.get_attempt(now, job_id, job.attempt)))


def response(now: int, job_id: str) -> Operation[Source]:
    """Return where a response lies; of a job that is not completed, its latest partial or earlier one.

    Raises:
        JobNotFound: There is no such job.
        TextsPruned: It was removed.
    """
    job = yield from jobs.get(now, job_id)
    if job.status is not JobStatus.COMPLETED:
        row = yield from fetch_one(
            """
            SELECT output_file_path, outcome FROM job_attempts
            WHERE job_id = :job_id AND (output_file_path IS NOT NULL OR outcome = 'completed')
            ORDER BY attempt DESC LIMIT 1
            """,
            job_id=job_id,
        )
        if row is not None and row["outcome"] != AttemptOutcome.COMPLETED:
            return Source(None, row["output_file_path"])
    if job.response is None and job.output_file_path is None:  # an answer that came late is there all the same
        jobs.refuse_pruned(job)
    return Source(job.response, job.output_file_path, job.output_bytes, job.output_sha256)


def move_into_row(
    now: int, claim: Claim, text: Text, file_path: str, usage: Usage | None, metadata: dict[str, object] | None
) -> Operation[Moved]:
    """Running → completed, with what was streamed into a file as the inline response, as `attempts.complete` tells.

    If the attempt had completed already, with another answer, its file stays.
    """
    job = yield from attempts.complete(now, claim, text, usage, metadata, keep_output=False)
    named = yield from jobs.file_paths_named(now, [file_path])
    return Moved(job, None if named else file_path)
