"""`jobstore tail`: a response while it is being written."""

from __future__ import annotations

import typer

from jobstore import Job, JobStatus, JobStore, OutputRestarted
from jobstore.aio import in_thread
from jobstore.cli import stores
from jobstore.cli.options import Db, JobId, Outputs
from jobstore.cli.screen import is_terminal, note, write_exactly


def tail(job_id: JobId, *, db: Db = "", outputs: Outputs = None) -> None:
    """Print a response while it is being written.

    A job that waits is waited for. When it is tried again, the response begins anew; the standard error tells.
    The exit code is 0 if the job is completed, else 1.
    """
    writer = _Writer()

    async def act(store: JobStore) -> Job:
        return await _follow(store, await stores.find(store, job_id), writer)

    try:
        job = stores.run(db, act, outputs)
    finally:
        writer.end_line()
    if job.status is not JobStatus.COMPLETED:
        note(f"job {job.id} {_state(job)}")
        raise typer.Exit(1)


async def _follow(store: JobStore, job_id: str, writer: _Writer) -> Job:
    """Print attempt after attempt until the job has ended."""
    while True:
        job = await store.jobs.get(job_id)
        if not job.status.is_terminal and job.status is not JobStatus.RUNNING:
            writer.tell(f"the job {_state(job)}: waiting for {'the next attempt' if job.attempt else 'a worker'}")
        try:
            async for text in store.jobs.tail(job_id):
                await in_thread(writer.write, text)
        except OutputRestarted as restart:
            writer.tell(f"what attempt {restart.attempt} wrote does not count: the response begins anew")
            continue
        job = await store.jobs.get(job_id)
        if job.status.is_terminal:
            return job


def _state(job: Job) -> str:
    reason = f" ({job.error_type})" if job.error_type else ""
    return f"is {job.status}{reason}"


class _Writer:
    """Writes a text, and what is to be said about it on lines of their own."""

    def __init__(self) -> None:
        self._within_line = False

    def write(self, text: str) -> None:
        write_exactly(text)
        self._within_line = not text.endswith("\n")

    def tell(self, message: str) -> None:
        """Say something that is no part of the text."""
        self.end_line()
        note(message)

    def end_line(self) -> None:
        if self._within_line and is_terminal():
            write_exactly("\n")
        self._within_line = False
