"""`jobstore workers`: who lives, and what they do."""

from __future__ import annotations

from jobstore import JobStore, WorkerInfo
from jobstore.cli import stores
from jobstore.cli.options import AsJson, Db
from jobstore.cli.screen import Cell, ago, one_line, write_json, write_table


def workers(*, db: Db = "", as_json: AsJson = False) -> None:
    """List the workers that live.

    One that was killed or cut off is gone from here after 15 seconds.
    """

    async def act(store: JobStore) -> list[WorkerInfo]:
        return await store.workers.list()

    found = stores.run(db, act)
    if as_json:
        write_json({"items": found})
        return
    headings = ["worker", "host", "pid", "version", "running", "task types", "APIs", "started", "seen"]
    write_table(headings, list(map(_row, found)), may_be_cut={"worker", "host", "version", "task types", "APIs"})


def _row(worker: WorkerInfo) -> list[Cell]:
    return [
        one_line(worker.id),
        one_line(worker.host),
        str(worker.pid),
        one_line(worker.version),
        f"{worker.running:,}/{worker.concurrency:,}",
        one_line(", ".join(worker.task_types)),
        one_line(", ".join(worker.api_types)),
        ago(worker.started_at),
        ago(worker.seen_at),
    ]
