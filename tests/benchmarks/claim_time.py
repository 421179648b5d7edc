"""Benchmark of flat cost: how long a claim takes in an empty store, and beside a backlog and a long history.

Run by hand: `python tests/benchmarks/claim_time.py [--jobs 1000000]`: so many idle jobs of another lane and as many
finished ones. The ratios are what counts: each shape of claim against itself in the empty store.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from jobstore import Claim, JobStore
from jobstore.engines.sqlite import connect_writer
from jobstore.migrate import Migrator

ROUNDS = 400

NUMBERS = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs)"
BACKLOG = f"""
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)
    {NUMBERS} SELECT printf('0100-%09d', n), 'other', 'api', 'idle', n, n, n, 'Say hello' FROM number
"""
HISTORY = f"""
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, attempt, attempts_used, created_at,
        updated_at, started_at, finished_at, prompt, response)
    {NUMBERS} SELECT printf('0000-%09d', n), 'task', 'api', 'completed', n, 1, 1, n, n, n, n, 'Say hello', 'Hello'
    FROM number
"""
ATTEMPTS = """
    INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at, finished_at, outcome)
    SELECT id, 1, 'worker', run_at, run_at, run_at, 'completed' FROM background_jobs WHERE status = 'completed'
"""


def fill(connection: sqlite3.Connection, jobs: int) -> None:
    """Insert the backlog and the history."""
    for sql in (BACKLOG, HISTORY, ATTEMPTS):
        connection.execute(sql, {"jobs": jobs} if ":jobs" in sql else {})
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


async def claim_times(path: Path) -> dict[str, float]:
    """Return the median seconds of a claim, for each way to filter."""
    async with JobStore(path, durability="normal") as store:
        shapes: dict[str, Callable[[], Coroutine[Any, Any, list[Claim]]]] = {
            "by lane": lambda: store.jobs.claim("w", task_types=["task"], api_types=["api"]),
            "by task type": lambda: store.jobs.claim("w", task_types=["task"]),
            "not filtered": lambda: store.jobs.claim("w"),
        }
        return {name: await median(store, shape) for name, shape in shapes.items()}


async def median(store: JobStore, claim: Callable[[], Coroutine[Any, Any, list[Claim]]]) -> float:
    times = []
    for _ in range(ROUNDS):
        await store.jobs.enqueue("Say hello", task_type="task", api_type="api", priority=1)
        started = time.perf_counter()
        [claimed] = await claim()
        times.append(time.perf_counter() - started)
        await store.jobs.complete(claimed, "Hello")
    return statistics.median(times)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "empty.db", Path(name) / "full.db"
        for path in (small, large):
            Migrator(path).run()
        with closing(connect_writer(large, "normal")) as connection:
            fill(connection, options.jobs)
        empty, full = asyncio.run(claim_times(small)), asyncio.run(claim_times(large))
        again = asyncio.run(claim_times(small))
    print(f"{options.jobs:,} idle jobs of another lane and {options.jobs:,} finished ones; median µs of a claim")
    print(f"{'':14}{'empty':>8}{'full':>8}{'ratio':>8}{'empty again':>13}")
    for shape, before in empty.items():
        ratio = full[shape] / min(before, again[shape])
        print(f"{shape:14}{before * 1e6:8.0f}{full[shape] * 1e6:8.0f}{ratio:8.2f}{again[shape] * 1e6:13.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
