"""Workers that are killed, told to stop and suspended at random: every job ends, none is completed twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from jobstore import AttemptOutcome, JobStatus, JobStore, NewJob
from tests.processes.support import spawn

LEASE = 1.0
PROGRAM = """
    import asyncio, sys
    from jobstore import JobStore
    from jobstore.workers import JobContext, Worker

    async def main(url, outputs, lease):
        async with JobStore(url, outputs=outputs) as store:
            worker = Worker(store, concurrency=8, lease=float(lease))

            @worker.handles("task")
            async def handle(job: JobContext) -> str:
                await asyncio.sleep(0.005)
                return f"{job.prompt} by attempt {job.attempt}"

            print("working", flush=True)
            await worker.run(grace=1)

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
        self._workers = [self._start() for _ in range(3)]

    def _start(self) -> subprocess.Popen[str]:
        return spawn(PROGRAM, *self._arguments)

    def strike(self) -> str:
        """Do something to one of the workers at a random time; what it ended is started anew."""
        number = self._chance.randrange(len(self._workers))
        worker = self._workers[number]
        time.sleep(self._chance.uniform(0, 0.3))
        how = self._chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        os.kill(worker.pid, how)
        if how is signal.SIGSTOP:
            time.sleep(self._chance.uniform(0, 2 * LEASE))
            os.kill(worker.pid, signal.SIGCONT)
            return how.name
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode in {0, -how}, errors
        self._workers[number] = self._start()
        return how.name

    def end(self) -> None:
        """Let all workers stop as they are told to."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            _, errors = worker.communicate(timeout=60)
            assert worker.returncode in {0, -signal.SIGTERM}, errors


async def fill(database: Path | str, jobs: int) -> None:
    async with JobStore(database, migrate=True) as store:
        new = (NewJob(prompt=f"job {n}", task_type="task", api_type="api", max_attempts=1000) for n in range(jobs))
        await store.jobs.enqueue_many(new)


async def check(database: Path | str, jobs: int) -> None:
    """Check that every job ended once, by the attempt that says so."""
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


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(6, id="6 rounds"),
        pytest.param(200, id="200 rounds", marks=[pytest.mark.full, pytest.mark.timeout(1200)]),
    ],
)
def test_whatever_happens_to_workers_every_job_ends_once(database: Path | str, outputs: Path, rounds: int) -> None:
    jobs = 400 * rounds
    asyncio.run(fill(database, jobs))
    seed = random.randrange(2**32)  # noqa: S311
    print(f"seed {seed}")
    attack = Attack((database, outputs, LEASE), seed)
    try:
        strikes = Counter(attack.strike() for _ in range(rounds))
        asyncio.run(check(database, jobs))
    finally:
        attack.end()
    print(f"{jobs} jobs, {dict(strikes)}")
