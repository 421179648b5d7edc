"""A worker in a process of its own, whose job is canceled from here, or which is suspended for too long."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jobstore import AttemptOutcome, Claim, JobStatus, JobStore
from tests.processes.support import spawn

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no signals")

LEASE = 1.0
PROGRAM = """
    import asyncio, logging, sys
    from jobstore import JobStore
    from jobstore.workers import Worker

    async def main(url, outputs, lease):
        async with JobStore(url, outputs=outputs) as store:
            worker = Worker(store, concurrency=1, lease=float(lease))  # or it might claim what it lost itself

            @worker.handles("task")
            async def handle(job):
                await job.write("a beginning")
                print("begun", flush=True)
                try:
                    await asyncio.Event().wait()
                finally:
                    print("cancelled", flush=True)

            @worker.handles("quick")
            async def answer(job):
                return "answer"

            worker.on_lease_lost(lambda event: print("lost", event.job.id, event.attempt, flush=True))
            await worker.run(grace=0)

    logging.basicConfig(level="INFO", format="%(message)s")
    asyncio.run(main(*sys.argv[1:]))
"""


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@asynccontextmanager
async def working(*arguments: object) -> AsyncIterator[subprocess.Popen[str]]:
    """Run the program until its handler has begun; kill what is left of it at the end."""
    process = spawn(PROGRAM, *arguments)
    try:
        assert await asyncio.to_thread(said, process) == "begun"
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate, None, 60)


async def claimed_once_its_lease_has_ended(store: JobStore) -> Claim:
    async with asyncio.timeout(60):
        while True:
            token = await store.jobs.wake()
            for claim in await store.jobs.claim("another", lease=3600):
                return claim
            await store.jobs.wake(since=token)


async def test_a_cancellation_reaches_a_handler_in_another_process_and_its_partial_stays(
    database: Path | str, outputs: Path
) -> None:
    """Long before the next beat of its lease could tell."""
    async with JobStore(database, migrate=True, outputs=outputs) as store:
        job = await store.jobs.enqueue("p", task_type="task", api_type="api")
        async with working(database, outputs, 3600) as process:
            await store.jobs.cancel(job.id)
            assert await asyncio.to_thread(said, process) == "cancelled"
            done = await store.jobs.wait(job.id, timeout=60)
        assert done.status is JobStatus.CANCELED
        assert await store.jobs.read_response(job.id) == "a beginning"
        [attempt] = await store.jobs.attempts(job.id)
        assert attempt.outcome is AttemptOutcome.CANCELED
        assert attempt.cancel_acknowledged_at is not None


async def test_a_worker_that_was_suspended_loses_its_lease_drops_its_result_and_says_so(
    database: Path | str, outputs: Path
) -> None:
    async with JobStore(database, migrate=True, outputs=outputs) as store:
        job = await store.jobs.enqueue("p", task_type="task", api_type="api")
        async with working(database, outputs, LEASE) as process:
            os.kill(process.pid, signal.SIGSTOP)
            claim = await claimed_once_its_lease_has_ended(store)
            assert (claim.job_id, claim.attempt) == (job.id, 2)
            os.kill(process.pid, signal.SIGCONT)
            assert await asyncio.to_thread(said, process) == "cancelled"
            assert await asyncio.to_thread(said, process) == f"lost {job.id} 1"
            done = await store.jobs.complete(claim, "the other's")
            after = await store.jobs.enqueue("p", task_type="quick", api_type="api")
            assert (await store.jobs.wait(after.id, timeout=60)).response == "answer"  # it works on
            process.terminate()
            _, errors = await asyncio.to_thread(process.communicate, None, 60)
        assert process.returncode == 0
        assert f"job {job.id} attempt 1 lease lost, result dropped" in errors
        assert await store.jobs.get(job.id) == done
        assert (done.status, done.response) == (JobStatus.COMPLETED, "the other's")
        outcomes = [attempt.outcome for attempt in await store.jobs.attempts(job.id)]
        assert outcomes == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]
