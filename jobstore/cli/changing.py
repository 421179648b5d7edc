"""`jobstore cancel` and `jobstore retry`: what an operator does to jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import typer

from jobstore import Job, JobStatus, JobStore, JobStoreError
from jobstore.cli import stores
from jobstore.cli.listing import without_texts
from jobstore.cli.options import AsJson, Db, JobIds
from jobstore.cli.screen import note, say, write_json

Change = Callable[[JobStore, str], Awaitable[Job]]


def cancel(ids: JobIds, *, db: Db = "", as_json: AsJson = False) -> None:
    """Cancel jobs.

    A waiting job is canceled at once. A running one is asked to end: its worker hears of it within seconds.
    """

    async def change(store: JobStore, job_id: str) -> Job:
        return await store.jobs.cancel(job_id)

    _change_all(ids, change, db, as_json=as_json)


def retry(ids: JobIds, *, db: Db = "", as_json: AsJson = False) -> None:
    """Let finished jobs run again, with all their attempts before them.

    What a job answered before stays readable until a new answer is recorded.
    """

    async def change(store: JobStore, job_id: str) -> Job:
        return await store.jobs.retry(job_id)

    _change_all(ids, change, db, as_json=as_json)


def _change_all(ids: list[str], change: Change, db: str, *, as_json: bool) -> None:
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
            say(f"{job.id} {_outcome(job)}")
    for refused in errors:
        note(refused["error"])
    if errors:
        raise typer.Exit(1)


def _outcome(job: Job) -> str:
    return "is asked to end" if job.status is JobStatus.RUNNING else f"is {job.status}"
