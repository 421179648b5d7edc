"""`jobstore list` and `jobstore stats`: many jobs at a glance."""

from __future__ import annotations

import shutil
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from jobstore import Job, JobStats, JobStatus, JobStore, Page
from jobstore.cli import stores
from jobstore.cli.options import ApiType, AsJson, CreatedAfter, CreatedBefore, Db, Session, Status, TaskType
from jobstore.cli.screen import Cell, ago, is_terminal, note, one_line, write_json, write_table

STYLES = {
    JobStatus.RUNNING: "cyan",
    JobStatus.COMPLETED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELED: "yellow",
    JobStatus.SCHEDULED: "blue",
}
ENDING = 6
"""How many of the last characters of an id are enough to name a job by."""
NARROW, SHORT = 90, 12
"""Columns of a terminal below which whole ids would leave no room for what jobs are, and how much of them it gets."""


def without_texts(job: Job) -> dict[str, Any]:
    """Return a job for JSON, without its prompt and response."""
    return job.model_dump(mode="json", exclude={"prompt", "response"})


def status_cell(job: Job) -> Text:
    """Return a job's status in its colour."""
    return Text(job.status, style=STYLES.get(job.status, ""))


def list_jobs(
    *,
    status: Status = None,
    session: Session = None,
    task_type: TaskType = None,
    api_type: ApiType = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    cleared: Annotated[bool, typer.Option("--cleared", help="Only those that were hidden.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Also those that were hidden.")] = False,
    order: Annotated[
        Literal["newest", "active"],
        typer.Option("--order", help="The newest first; or the running first, then the waiting, then the finished."),
    ] = "newest",
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="How many at most, up to 1,000.")] = 50,
    cursor: Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Go on where a list ended.")] = None,
    db: Db = "",
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first, without their texts.

    The last characters of an id, 6 or more, are enough to name the job by.
    """

    async def act(store: JobStore) -> Page[Job]:
        return await store.jobs.list(
            status=status or None,
            session_id=session,
            task_type=task_type,
            api_type=api_type,
            cleared=None if every else cleared,
            created_before=created_before,
            created_after=created_after,
            order=order,
            limit=limit,
            cursor=cursor,
        )

    page = stores.run(db, act)
    if as_json:
        write_json({"items": list(map(without_texts, page.items)), "next_cursor": page.next_cursor})
        return
    headings = ["id", "status", "task type", "api", "age", "tries", "message"]
    write_table(headings, list(map(_row, page.items)), may_be_cut={"task type", "api", "message"})
    if page.next_cursor is not None:
        note(f"there are more: --cursor {page.next_cursor}")


def stats(*, db: Db = "", as_json: AsJson = False) -> None:
    """Count the jobs by status and lane (task type and API)."""

    async def act(store: JobStore) -> JobStats:
        return await store.jobs.stats()

    found = stores.run(db, act)
    if as_json:
        write_json(found)
        return
    lanes = sorted(found.lanes, key=lambda lane: (lane.task_type, lane.api_type))
    rows = [[f"{lane.task_type}/{lane.api_type}", *_counts(lane.counts)] for lane in lanes]
    write_table(["lane", *JobStatus], [*rows, ["all", *_counts(found.counts)]], may_be_cut={"lane"})


def _row(job: Job) -> list[Cell]:
    message = job.error_type if job.status in {JobStatus.FAILED, JobStatus.CANCELED} else job.status_message
    return [
        _id_cell(job.id),
        status_cell(job),
        job.task_type,
        job.api_type,
        ago(job.created_at),
        f"{job.attempts_used}/{job.max_attempts}",
        one_line(message or ""),
    ]


def _id_cell(job_id: str) -> Text:
    cell = Text(one_line(job_id))
    if len(cell) > SHORT and is_terminal() and shutil.get_terminal_size().columns < NARROW:
        cell = Text(f"…{cell.plain[-SHORT:]}")
    cell.stylize("bold", max(0, len(cell) - ENDING))
    return cell


def _counts(counts: dict[JobStatus, int]) -> list[Cell]:
    return [
        Text(f"{counts[status]:,}", style=STYLES.get(status, "")) if counts.get(status) else "0" for status in JobStatus
    ]
