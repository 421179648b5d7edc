"""A worker process heeds SIGTERM and SIGINT: it finishes, releases the rest, and exits with code 0."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobstore import JobStatus, JobStore

PROGRAM = """
import asyncio, sys
from jobstore import JobStore
from jobstore.workers import Worker

async def main(path, ends, grace):
    async with JobStore(path) as store:
        worker = Worker(store)

        @worker.handles("task")
        async def handle(job):
            print("begun", flush=True)
            if ends:
                await asyncio.to_thread(sys.stdin.readline)
                return "done"
            await asyncio.Event().wait()

        await worker.run(grace=grace)
    print("over", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2] == "ends", float(sys.argv[3])))
"""


async def one_job(database: Path) -> str:
    async with JobStore(database, migrate=True) as store:
        return (await store.jobs.enqueue("p", task_type="task", api_type="api")).id


async def look(database: Path, job_id: str) -> tuple[JobStatus, int]:
    async with JobStore(database) as store:
        job = await store.jobs.get(job_id)
        return job.status, job.attempts_used


def start(database: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a worker and return once its handler has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(database), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_job_end(database: Path, number: int) -> None:
    job_id = asyncio.run(one_job(database))
    process = start(database, "ends", "60")
    os.kill(process.pid, number)
    output, _ = process.communicate("end now\n", timeout=60)
    assert (process.returncode, output) == (0, "over\n")
    assert asyncio.run(look(database, job_id)) == (JobStatus.COMPLETED, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_grace_a_signal_releases_the_running_job(database: Path, number: int) -> None:
    job_id = asyncio.run(one_job(database))
    process = start(database, "goes on", "0")
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "over\n")
    assert asyncio.run(look(database, job_id)) == (JobStatus.IDLE, 0)


def test_a_killed_workers_job_is_anybodys_again_when_its_lease_has_ended(database: Path) -> None:
    job_id = asyncio.run(one_job(database))
    process = start(database, "goes on", "0")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()

    async def rescue() -> None:
        def later() -> int:
            return 10**13

        async with JobStore(database, clock=later) as store:
            [claim] = await store.jobs.claim("next")
            assert (claim.job_id, claim.attempt, claim.job.attempts_used) == (job_id, 2, 2)

    asyncio.run(rescue())


def test_a_signal_stops_all_workers_of_a_process_and_abandons_threads_that_go_on(database: Path) -> None:
    job_id = asyncio.run(one_job(database))
    program = """
import asyncio, sys, threading
from jobstore import JobStore
from jobstore.workers import Worker

async def main(path):
    async with JobStore(path) as store:
        workers = [Worker(store, cancel_grace=0.1), Worker(store)]

        @workers[0].handles("task")
        def handle(job):
            print("begun", flush=True)
            threading.Event().wait()

        workers[1].handles("other")(handle)
        await asyncio.gather(*(worker.run(grace=0) for worker in workers))
    print("over", flush=True)

asyncio.run(main(sys.argv[1]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "over\n")
    assert asyncio.run(look(database, job_id)) == (JobStatus.IDLE, 0)
