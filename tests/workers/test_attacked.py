"""Workers that are killed, told to stop and suspended at random: every job ends, none is completed twice."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from jobstore import AttemptOutcome, JobStatus, JobStore, NewJob
from tests.processes.support import spawn

LEASE = 0.5
"""Seconds: so short that those suspended often lose theirs, and those under load now and then."""
WORKERS = 3
PROGRAM = """
    import asyncio, logging, random, sys
    from jobstore import JobStore
    from jobstore.workers import JobContext, Worker

    async def main(url, outputs, lease):
        async with JobStore(url, outputs=outputs) as store:
            worker = Worker(store, concurrency=8, lease=float(lease))

            @worker.handles("task")
            async def handle(job: JobContext) -> str:
                await asyncio.sleep(random.uniform(0, 0.1))
                return f"{job.prompt} by attempt {job.attempt}"

            print("working", flush=True)
            await worker.run(grace=1)

    logging.getLogger("jobstore").setLevel("ERROR")  # else lost leases fill the pipe that nobody reads meanwhile
    asyncio.run(main(*sys.argv[1:]))
"""


class Attack:
    """A few workers on one database, one of which is attacked each round.

    Args:
        arguments: What the program takes.
        seed: Of what chance decides.
    """

    def __init__(self, arguments: tuple[object, ...], seed: int) -> None:
        self._arguments = arguments
        self._chance = random.Random(seed)  # noqa: S311
        self._starting: list[subprocess.Popen[str]] = []
        self._working: list[subprocess.Popen[str]] = []
        self._ending: list[tuple[subprocess.Popen[str], set[int]]] = []
        for _ in range(WORKERS):
            self._start()

    def _start(self) -> None:
        self._starting.append(spawn(PROGRAM, *self._arguments))

    def strike(self) -> str:
        """Do something to one of the workers at a random time; what it ended is started anew."""
        self._see_who_works()
        time.sleep(self._chance.uniform(0, 0.3))
        worker = self._chance.choice(self._working)
        how = self._chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        os.kill(worker.pid, how)
        if how is signal.SIGSTOP:
            time.sleep(self._chance.uniform(0, 2 * LEASE))
            os.kill(worker.pid, signal.SIGCONT)
            return how.name
        self._working.remove(worker)
        self._ending.append((worker, {0, -signal.SIGTERM} if how is signal.SIGTERM else {-how}))
        self._start()
        return how.name

    def _see_who_works(self) -> None:
        """Note those that have begun to work; wait for one if there is none."""
        streams = {worker.stdout: worker for worker in self._starting if worker.stdout is not None}
        said, _, _ = select.select(list(streams), [], [], 0 if self._working else 60)
        for stream in said:
            assert stream.readline() == "working\n"
            self._starting.remove(streams[stream])
            self._working.append(streams[stream])

    def end(self) -> None:
        """Let all workers stop as they are told to."""
        for worker in self._starting + self._working:
            worker.terminate()
            self._ending.append((worker, {0, -signal.SIGTERM}))
        for worker, codes in self._ending:
            _, errors = worker.communicate(timeout=60)
            assert worker.returncode in codes, errors


async def fill(database: Path | str, jobs: int) -> None:
    async with JobStore(database, migrate=True) as store:
        new = (NewJob(prompt=f"job {n}", task_type="task", api_type="api", max_attempts=1000) for n in range(jobs))
        await store.jobs.enqueue_many(new)


async def unfinished(database: Path | str) -> int:
    async with JobStore(database) as store:
        return await store.jobs.count(status=["idle", "running", "scheduled"])


async def check(database: Path | str, jobs: int) -> Counter[str]:
    """Check that every job ended once, by the attempt that says so; return the outcomes of all attempts."""
    async with JobStore(database) as store:
        async with asyncio.timeout(120):
            while await store.jobs.count(status="completed") < jobs:
                await asyncio.sleep(0.05)
        assert await store.jobs.count() == jobs
        rows = await store.execute("SELECT id, status, attempt, prompt, response FROM background_jobs")
        assert {row["status"] for row in rows} == {JobStatus.COMPLETED}
        for row in rows:
            assert row["response"].startswith(f"{row['prompt']} by attempt ")
        attempts = await store.execute("SELECT job_id, attempt, outcome, finished_at FROM job_attempts")
        ended = Counter(one["job_id"] for one in attempts if one["outcome"] == AttemptOutcome.COMPLETED)
        assert ended == Counter({row["id"]: 1 for row in rows})
        assert all(one["finished_at"] is not None for one in attempts)
        return Counter(one["outcome"] for one in attempts)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(20, id="20 rounds"),
        pytest.param(200, id="200 rounds", marks=[pytest.mark.full, pytest.mark.timeout(1200)]),
    ],
)
def test_whatever_happens_to_workers_every_job_ends_once(database: Path | str, outputs: Path, rounds: int) -> None:
    jobs = 80 * rounds  # enough that some are left at the last of them
    asyncio.run(fill(database, jobs))
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    attack = Attack((database, outputs, LEASE), seed)
    try:
        strikes = Counter(attack.strike() for _ in range(rounds))
        left = asyncio.run(unfinished(database))
        outcomes = asyncio.run(check(database, jobs))
    finally:
        attack.end()
    print(f"{jobs} jobs, {left} of them unfinished after {dict(strikes)}; attempts: {dict(outcomes)}")
