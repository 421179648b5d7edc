"""Pruning and vacuuming beside workers, and killed at random points. In full: fifty kills, and a minute of work."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import JobStatus, JobStore, NewJob

from .support import finish, spawn

PRUNE = """
    import asyncio, sys
    from jobstore import JobStore

    async def main(path, what):
        async with JobStore(path) as store:
            print("begun", flush=True)
            if what == "vacuum":
                await store.vacuum()
            else:
                await store.jobs.prune(keep=0, texts_only=what == "texts")

    asyncio.run(main(*sys.argv[1:]))
"""
WORK = """
    import asyncio, sys
    from jobstore import JobStore
    from jobstore.workers import Worker

    async def main(path):
        async with JobStore(path) as store:
            worker = Worker(store, concurrency=8, maintenance=0.05)

            @worker.handles("t")
            async def answer(job):
                return job.prompt * 3

            print("begun", flush=True)
            await worker.run()

    asyncio.run(main(*sys.argv[1:]))
"""
LARGE = "A long text. " * 6000


async def fill(path: Path, jobs: int) -> None:
    """Make jobs that have ended, with texts in rows and in files."""
    async with JobStore(path, migrate=True) as store:
        prompts = ("short", "x" * 20_000, LARGE, "short")
        await store.jobs.enqueue_many(
            NewJob(prompt=prompts[number % 4], task_type="t", api_type="a") for number in range(jobs)
        )
        for claim in await store.jobs.claim("w", limit=jobs // 2):
            await store.jobs.complete(claim, LARGE if claim.job_id < claim.job_id[::-1] else "an answer")
        await store.jobs.cancel_all(everything=True)


async def check_whole(path: Path) -> None:
    """Check that the file is sound, and that each text that a row names is there and is what the row says."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    async with JobStore(path) as store:
        for row in await store.execute("SELECT id, status, texts_pruned_at FROM background_jobs"):
            if row["texts_pruned_at"] is None:
                assert await store.jobs.read_prompt(row["id"])
                assert (await store.jobs.read_response(row["id"]) is not None) == (row["status"] == "completed")
        named = await store.execute(
            "SELECT output_file_path AS path FROM job_attempts WHERE output_file_path IS NOT NULL"
        )
        assert all((Path(f"{path}.outputs") / row["path"]).is_file() for row in named)


def kill_within(seconds: float, path: Path, what: str) -> bool:
    """Kill a process that prunes or vacuums after some time; return whether it had not ended before."""
    process = spawn(PRUNE, path, what)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)  # chance, not a wait: wherever it is by then, it is killed
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    code = process.wait()
    process.communicate()
    assert code in {0, -signal.SIGKILL}
    return code != 0


def undisturbed(path: Path, what: str) -> float:
    started = time.monotonic()
    code, _, errors = finish(spawn(PRUNE, path, what))
    assert code == 0, errors
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("rounds", "jobs"),
    [
        pytest.param(1, 120, id="one"),
        pytest.param(50, 500, id="fifty", marks=[pytest.mark.full, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_at_random_points_the_store_is_whole(tmp_path: Path, rounds: int, jobs: int) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    killed = 0
    for number in range(rounds):
        path = tmp_path / f"{number}.db"
        asyncio.run(fill(path, jobs))
        for what in ("texts", "jobs", "vacuum"):
            killed += kill_within(chance.uniform(0, 0.05 + jobs / 4000), path, what)
            asyncio.run(check_whole(path))
        for what in ("jobs", "vacuum"):
            undisturbed(path, what)
        asyncio.run(check_whole(path))
        asyncio.run(check_empty(path))
        path.unlink()
    print(f"killed in the middle: {killed} of {3 * rounds}")


async def check_empty(path: Path) -> None:
    """Check that what was to go is gone, and that files which no row names are orphans that a sweep takes."""
    async with JobStore(path) as store:
        assert await store.jobs.count() == 0
        assert (await store.jobs._backend.engine.space()).free == 0
        left = [file for file in Path(f"{path}.outputs").rglob("*.txt") if file.is_file()]
        for file in left:
            os.utime(file, (0, 0))
        assert await store.sweep() == len(left)


@pytest.mark.parametrize(
    "seconds", [pytest.param(1, id="short"), pytest.param(60, id="a minute", marks=pytest.mark.full)]
)
async def test_beside_four_workers_at_full_speed_nobody_fails(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "jobs.db"
    async with JobStore(path, migrate=True) as store:
        await store.retention.set("texts", removes="texts", keep=20)
        workers = [await asyncio.to_thread(spawn, WORK, path) for _ in range(4)]
        for worker in workers:
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == "begun\n"
        made, pruned, vacuums, end = 0, 0, 0, time.monotonic() + seconds
        while time.monotonic() < end or not pruned or not vacuums:
            await store.jobs.enqueue_many(
                NewJob(prompt=LARGE if number == 0 else "x" * 3000, task_type="t", api_type="a") for number in range(50)
            )
            made += 50
            pruned += await store.jobs.prune(keep=50)
            await store.vacuum()
            vacuums += 1
        await _until_done(store)
        counts = (await store.jobs.stats()).counts
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            code, _, errors = await asyncio.to_thread(finish, worker)
            assert (code, errors) == (0, "")
    assert counts[JobStatus.COMPLETED] == made - pruned
    assert sum(counts.values()) == made - pruned
    print(f"{made} jobs, {pruned} pruned, {vacuums} vacuums within {seconds} s")
    await check_whole(path)


async def _until_done(store: JobStore) -> None:
    waiting = [JobStatus.IDLE, JobStatus.RUNNING, JobStatus.SCHEDULED]
    async with asyncio.timeout(120):
        while await store.jobs.count(status=waiting):
            await asyncio.sleep(0.05)
