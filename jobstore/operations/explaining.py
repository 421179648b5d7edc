"""Operations that tell why a job is not running: what a claim would see, in words."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import NamedTuple

from jobstore.clock import from_milliseconds, to_milliseconds
from jobstore.lifecycle import CALL_UNKNOWN, EXPIRED, JobStatus
from jobstore.models import Attempt, Job
from jobstore.operations import attempts, jobs, pausing, registering
from jobstore.overviews import Explanation, ExplanationReason, Pause
from jobstore.sql import Operation, fetch_one, placeholders

MAX_AHEAD = 1000
"""How many jobs ahead are counted: to read more would take long, and nobody needs to know."""


class _Told(NamedTuple):
    reason: ExplanationReason
    text: str
    until: datetime | None


class _Workers(NamedTuple):
    """The live workers that are registered for a job's task type or API."""

    number: int
    places: int
    """How many jobs they could still take when they last said so."""
    others: int
    """How many other live workers there are."""
    task_types: list[str]
    """All that they handle."""
    api_types: list[str]
    """The APIs whose jobs they do, whatever the task type."""


def explain(now: int, job_id: str) -> Operation[Explanation]:
    """Say why a job is not running, or what became of it.

    Raises:
        JobNotFound: There is no such job.
    """
    job = yield from jobs.get(now, job_id)
    attempt = yield from attempts.get_attempt(now, job_id, job.attempt)
    pause = pausing.longest((yield from pausing.pauses(now)), job.task_type, job.api_type)
    known = partial(
        Explanation,
        job_id=job.id,
        status=job.status,
        pause=pause,
        worker_id=None if attempt is None else attempt.worker_id,
    )
    told = _told_by_itself(from_milliseconds(now), job, attempt, pause)
    if told is not None:
        return known(**told._asdict())
    workers = yield from _workers(now, job)
    if not workers.number:
        return known(reason=ExplanationReason.NO_WORKER, text=_without_worker(job, workers.others))
    ahead = yield from _ahead(now, job, workers)
    reason = ExplanationReason.BEHIND if ahead else ExplanationReason.NEXT
    return known(reason=reason, text=_in_line(ahead, workers), workers=workers.number, ahead=ahead)


def _told_by_itself(now: datetime, job: Job, attempt: Attempt | None, pause: Pause | None) -> _Told | None:
    """Return what the job's own rows and its lane tell; None if it waits for a worker."""
    if job.status.is_terminal:
        return _ended(job)
    if job.status is JobStatus.RUNNING and attempt is not None:
        return _running(now, job, attempt)
    if job.expires_at is not None and job.expires_at <= now:
        text = f"It expired at {_utc(job.expires_at)} while it waited: the next claim cancels it."
        return _Told(ExplanationReason.EXPIRED, text, job.expires_at)
    if job.run_at > now:
        after = f", after {_tries(job)} ({job.error_type})" if job.attempts_used and job.error_type else ""
        text = f"It waits for its time: it is scheduled for {_utc(job.run_at)}{after}."
        return _Told(ExplanationReason.SCHEDULED, text, job.run_at)
    return None if pause is None else _paused(pause)


def _ended(job: Job) -> _Told:
    at = _utc(job.finished_at)
    if job.status is JobStatus.COMPLETED:
        return _Told(ExplanationReason.COMPLETED, f"It was completed at {at}.", job.finished_at)
    if job.error_type == EXPIRED and job.status is JobStatus.CANCELED:
        text = f"It was canceled at {at}: it still waited when it expired."
        return _Told(ExplanationReason.EXPIRED, text, job.finished_at)
    if job.status is JobStatus.CANCELED:
        return _Told(ExplanationReason.CANCELED, f"It was canceled at {at}.", job.finished_at)
    kind = f" ({job.error_type})" if job.error_type else ""
    if job.error_type == CALL_UNKNOWN:
        text = (
            f"It is held since {at}, after {_tries(job)}: its worker was lost while a call to a model was under way, "
            "and nobody knows whether that was carried out. See `jobstore show`, then retry it by hand."
        )
        return _Told(ExplanationReason.HELD, text, None)
    if job.attempts_used >= job.max_attempts:
        text = f"It failed at {at}{kind}: {_used_up(job)}. Retry it by hand."
        return _Told(ExplanationReason.ATTEMPTS_USED_UP, text, job.finished_at)
    text = f"It failed for good at {at}{kind}, after {_tries(job)}. Retry it by hand."
    return _Told(ExplanationReason.FAILED, text, job.finished_at)


def _running(now: datetime, job: Job, attempt: Attempt) -> _Told:
    end = attempt.lease_expires_at
    holds = f"worker {attempt.worker_id} has leased it until {_utc(end)}"
    if end <= now:
        text = f"Worker {attempt.worker_id} was lost, its lease ended at {_utc(end)}: {_fate(job)}."
        return _Told(ExplanationReason.LEASE_ENDED, text, end)
    if job.cancel_requested_at is not None:
        text = f"It was asked to end at {_utc(job.cancel_requested_at)}; {holds}."
        return _Told(ExplanationReason.CANCEL_REQUESTED, text, end)
    return _Told(ExplanationReason.RUNNING, f"It is running: {holds}.", end)


def _fate(job: Job) -> str:
    """Say what a rescue makes of a job whose lease has ended."""
    if job.cancel_requested_at is not None:
        return "the next claim cancels the job, as was asked"
    if job.attempts_used >= job.max_attempts:
        return f"the next claim lets the job fail, as {_used_up(job)}"
    return "the next claim gives the job back"


def _paused(pause: Pause) -> _Told:
    end = "until someone resumes it" if pause.until is None else f"until {_utc(pause.until)}"
    why = f" ({pause.reason})" if pause.reason else ""
    return _Told(ExplanationReason.PAUSED, f"It waits: {pause.scope} is paused {end}{why}.", pause.until)


def _without_worker(job: Job, others: int) -> str:
    alive = f"only {_several(others, 'live worker')} for others" if others else "and none for anything else"
    return f"It waits: no live worker is registered for task type {job.task_type} or API {job.api_type}, {alive}."


def _in_line(ahead: int, workers: _Workers) -> str:
    they = (
        f"{_several(workers.number, 'live worker')}, with {_several(workers.places, 'free place')} when last heard of"
    )
    if not ahead:
        return f"It is the next in line for {they}."
    least = "at least " if ahead == MAX_AHEAD else ""
    return f"It waits for its turn: {least}{_several(ahead, 'job')} ahead of it for {they}."


def _workers(now: int, job: Job) -> Operation[_Workers]:
    live = yield from registering.live_workers(now)
    mine = [worker for worker in live if job.task_type in worker.task_types or job.api_type in worker.api_types]
    return _Workers(
        number=len(mine),
        places=sum(max(0, worker.concurrency - worker.running) for worker in mine),
        others=len(live) - len(mine),
        task_types=sorted({name for worker in mine for name in worker.task_types}),
        api_types=sorted({name for worker in mine for name in worker.api_types}),
    )


def _ahead(now: int, job: Job, workers: _Workers) -> Operation[int]:
    """Count the jobs that these workers would claim before a job, in the order of a claim."""
    tasks, task_types = placeholders("task", workers.task_types or [""])
    apis, api_types = placeholders("api", workers.api_types or [""])  # no lane has an empty name
    stretches = (  # of each lane's end of the index, none read further than it counts
        "priority > :priority",
        "priority = :priority AND run_at < :run_at",
        "priority = :priority AND run_at = :run_at AND id < :id",
    )
    counts = " + ".join(
        f"""(SELECT COUNT(*) FROM (
            SELECT 1 FROM background_jobs AS job WHERE job.status = 'idle' AND job.task_type = lane.task_type
                AND job.api_type = lane.api_type AND {stretch} LIMIT {MAX_AHEAD}) AS counted)"""
        for stretch in stretches
    )
    row = yield from fetch_one(
        f"""
        SELECT SUM({counts}) AS ahead FROM lanes AS lane
        WHERE (lane.task_type IN ({tasks}) OR lane.api_type IN ({apis})) AND {pausing.NOT_PAUSED}
        """,
        now=now,
        priority=job.priority,
        run_at=to_milliseconds(job.run_at),
        id=job.id,
        **task_types,
        **api_types,
    )
    return min(MAX_AHEAD, int(row["ahead"] or 0)) if row else 0


def _used_up(job: Job) -> str:
    return f"its attempts are used up ({job.attempts_used} of {job.max_attempts})"


def _tries(job: Job) -> str:
    return f"{job.attempts_used} of {_several(job.max_attempts, 'attempt')}"


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _utc(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
