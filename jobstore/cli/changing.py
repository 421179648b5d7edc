"""`jobstore cancel`, `jobstore retry` and `jobstore clear`: what an operator does to jobs, named or filtered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import typer

from jobstore import Job, JobStatus, JobStore, JobStoreError
from jobstore.cli import stores
from jobstore.cli.listing import without_texts
from jobstore.cli.options import (
    ApiType,
    AsJson,
    CreatedAfter,
    CreatedBefore,
    Db,
    Everything,
    JobIds,
    OlderThan,
    Session,
    Status,
    TaskType,
)
from jobstore.cli.screen import note, say, write_json

Change = Callable[[JobStore, str], Awaitable[Job]]
ChangeMany = Callable[[JobStore], Awaitable[int]]


def cancel(
    ids: JobIds = None,
    *,
    status: Status = None,
    session: Session = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    everything: Everything = False,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: those named, or all that the options find.

    A waiting job is canceled at once. A running one is asked to end: its worker hears of it within seconds.

    `jobstore cancel --task-type summary --status idle`
    """
    filters = _filters(status, session, task_type, api_type, created_after, created_before, everything)
    if _are_named(ids, filters):
        _change_each(ids or [], lambda store, job_id: store.jobs.cancel(job_id), _status, db, as_json=as_json)
    else:
        _change_many(lambda store: store.jobs.cancel_all(**filters), "canceled, or asked to end", db, as_json=as_json)


def retry(
    ids: JobIds = None,
    *,
    status: Status = None,
    session: Session = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    everything: Everything = False,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """Run ended jobs again: those named, or all that the options find.

    They have all their attempts again. Without `--status`, the options find failed jobs only. What a job answered
    before stays readable until a new answer is recorded. Hidden jobs are in lists again, and an expiry that has passed
    is dropped.

    `jobstore retry --task-type summary --created-after -2h`
    """
    filters = _filters(status, session, task_type, api_type, created_after, created_before, everything)
    if _are_named(ids, filters):
        _change_each(ids or [], lambda store, job_id: store.jobs.retry(job_id), _status, db, as_json=as_json)
    else:
        _change_many(lambda store: store.jobs.retry_all(**filters), "idle again", db, as_json=as_json)


def clear(
    ids: JobIds = None,
    *,
    status: Status = None,
    session: Session = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    older_than: OlderThan = None,
    everything: Everything = False,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """Hide jobs from lists: those named, or all that the options find.

    Nothing is deleted.

    `jobstore clear --older-than 7d`
    """
    filters = _filters(status, session, task_type, api_type, created_after, created_before, everything)

    async def change(store: JobStore, job_id: str) -> Job:
        await store.jobs.clear([job_id])
        return await store.jobs.get(job_id)

    async def change_many(store: JobStore) -> int:
        if older_than is not None:
            return await store.jobs.clear(older_than=older_than)
        return await store.jobs.clear_all(**filters)

    if older_than is not None and (ids or any(filters.values())):
        raise typer.BadParameter("give neither ids nor other options with it", param_hint="'--older-than'")
    if _are_named(ids, filters):
        _change_each(ids or [], change, lambda _: "hidden", db, as_json=as_json)
    else:
        _change_many(change_many, "hidden", db, as_json=as_json)


def _filters(
    status: Status,
    session: Session,
    task_type: TaskType,
    api_type: ApiType,
    created_after: CreatedAfter,
    created_before: CreatedBefore,
    everything: Everything,
) -> dict[str, Any]:
    """Return the options as the store takes them."""
    return {
        "status": status or None,
        "session_id": session,
        "task_type": task_type,
        "api_type": api_type,
        "created_after": created_after,
        "created_before": created_before,
        "everything": everything,
    }


def _are_named(ids: list[str] | None, filters: dict[str, Any]) -> bool:
    """Whether jobs are named by their ids.

    Raises:
        BadParameter: Not by them alone.
    """
    if ids and any(filters.values()):
        raise typer.BadParameter("give either ids or options that choose jobs", param_hint="'ID'")
    return bool(ids)


def _change_many(change: ChangeMany, outcome: str, db: str, *, as_json: bool) -> None:
    changed = stores.run(db, change)
    if as_json:
        write_json({"changed": changed})
    else:
        say(f"{changed:,} {'job is' if changed == 1 else 'jobs are'} {outcome}")


def _change_each(ids: list[str], change: Change, outcome: Callable[[Job], str], db: str, *, as_json: bool) -> None:
    """Change each job, those behind one that refuses as well."""
    jobs: list[Job] = []
    errors: list[dict[str, str]] = []

    async def act(store: JobStore) -> None:
        for typed in ids:
            try:
                jobs.append(await change(store, await stores.find(store, typed)))
            except JobStoreError as error:
                errors.append({"id": typed, "error": str(error)})

    stores.run(db, act)
    if as_json:
        write_json({"items": list(map(without_texts, jobs)), "errors": errors})
    else:
        for job in jobs:
            say(f"{job.id} is {outcome(job)}")
    for refused in errors:
        note(refused["error"])
    if errors:
        raise typer.Exit(1)


def _status(job: Job) -> str:
    return "asked to end" if job.status is JobStatus.RUNNING else job.status.value
