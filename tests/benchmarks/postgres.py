"""Benchmark of the store on PostgreSQL, beside plain psycopg, procrastinate and pgqueuer on the same server.

Run by hand: `python tests/benchmarks/postgres.py`. The last two are no dependencies of this project: install them
with `pip install "procrastinate[psycopg]" pgqueuer asyncpg`, or they are left out. All figures are operations a second
at full durability, of the same number of jobs, in one process; the ratios, not the figures, are what to compare.

Enqueueing is one call a job for all, by 64 concurrent callers where nothing else is said. Processing is done by each
library's own worker at a concurrency of 64 until nothing is left: the store's `Worker`, procrastinate's, and the
manager of pgqueuer, which takes 64 jobs at a time. The other rows claim and complete one job at a time. What is done
differs: the store and plain psycopg record an attempt and keep the answer of each job, the other two keep no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
from uuid_utils import uuid7

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, it uses the server that the tests use

from jobstore import JobStore
from jobstore.clock import system_clock
from tests import postgres
from tests.benchmarks import waking
from tests.benchmarks.workload import (
    CONCURRENCY,
    PROMPT,
    RESPONSE,
    Figures,
    check,
    rate,
    with_store,
    with_worker,
)

PLAIN = "plain psycopg, a commit each"
WORKER = "jobstore, 64 callers, Worker of 64"

INSERT = """
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)
    VALUES (%(id)s, 'task', 'api', 'idle', %(now)s, %(now)s, %(now)s, %(prompt)s)
"""
CLAIM = """
    UPDATE background_jobs SET status = 'running', attempt = attempt + 1, attempts_used = attempts_used + 1,
        started_at = %(now)s, updated_at = %(now)s
    WHERE id = (
        SELECT id FROM background_jobs WHERE status = 'idle' AND task_type = 'task' AND api_type = 'api'
        ORDER BY priority DESC, run_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, attempt, prompt
"""
BEGIN_ATTEMPT = """
    INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)
    VALUES (%(id)s, %(attempt)s, 'worker', %(now)s + 30000, %(now)s)
"""
COMPLETE = """
    UPDATE background_jobs SET status = 'completed', finished_at = %(now)s, updated_at = %(now)s,
        response = %(response)s
    WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
END_ATTEMPT = """
    UPDATE job_attempts SET finished_at = %(now)s, outcome = 'completed'
    WHERE job_id = %(id)s AND attempt = %(attempt)s
"""


def plain(database: str, jobs: int) -> Figures:
    """Return what one connection does with one commit for each enqueue, claim and completion."""
    asyncio.run(migrated(database))
    with closing(psycopg.connect(database, autocommit=True)) as connection:
        connection.prepare_threshold = 0
        started = time.perf_counter()
        for _ in range(jobs):
            connection.execute(INSERT, {"id": str(uuid7()), "now": system_clock(), "prompt": PROMPT})
        enqueued = time.perf_counter()
        for _ in range(jobs):
            plain_claim_and_complete(connection)
        done = time.perf_counter()
    return jobs / (enqueued - started), jobs / (done - enqueued)


def plain_claim_and_complete(connection: psycopg.Connection) -> None:
    now = system_clock()
    with connection.transaction():
        [(job_id, attempt, _)] = connection.execute(CLAIM, {"now": now}).fetchall()
        connection.execute(BEGIN_ATTEMPT, {"id": job_id, "attempt": attempt, "now": now})
    outcome = {"id": job_id, "attempt": attempt, "now": system_clock(), "response": RESPONSE}
    with connection.transaction():
        connection.execute(COMPLETE, outcome)
        connection.execute(END_ATTEMPT, {name: outcome[name] for name in ("id", "attempt", "now")})


async def migrated(database: str) -> None:
    async with JobStore(database, migrate=True):
        pass


async def with_procrastinate(database: str, jobs: int) -> Figures:
    """Return the same for procrastinate: concurrent `defer_async`, then its worker until nothing is left."""
    import procrastinate

    logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it would warn of where this program defines its tasks
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database))
    done = 0

    @app.task(name="task")
    async def task(prompt: str) -> str:  # noqa: ARG001 - what jobs carry
        nonlocal done
        done += 1
        return RESPONSE

    async with app.open_async():
        await app.schema_manager.apply_schema_async()

        async def enqueue() -> None:
            await task.defer_async(prompt=PROMPT)

        enqueued = await rate(enqueue, jobs, CONCURRENCY)
        started = time.perf_counter()
        await app.run_worker_async(concurrency=CONCURRENCY, wait=False, install_signal_handlers=False)
        elapsed = time.perf_counter() - started
    check(done, jobs)
    return enqueued, jobs / elapsed


async def with_pgqueuer(database: str, jobs: int) -> Figures:
    """Return the same for pgqueuer on a pool of asyncpg: concurrent `enqueue`, then its manager until drained."""
    import asyncpg
    import pgqueuer
    from pgqueuer.types import QueueExecutionMode

    done = 0
    async with asyncpg.create_pool(database, min_size=4, max_size=10) as pool:
        queries = pgqueuer.Queries(pgqueuer.AsyncpgPoolDriver(pool))
        await queries.install()

        async def enqueue() -> None:
            await queries.enqueue("task", PROMPT.encode())

        enqueued = await rate(enqueue, jobs, CONCURRENCY)
        manager = pgqueuer.QueueManager(queries)

        @manager.entrypoint("task")
        async def task(_job: pgqueuer.Job) -> None:
            nonlocal done
            done += 1

        started = time.perf_counter()
        await manager.run(batch_size=CONCURRENCY, mode=QueueExecutionMode.drain)
        elapsed = time.perf_counter() - started
    check(done, jobs)
    return enqueued, jobs / elapsed


def contestants(jobs: int) -> dict[str, Callable[[str], Figures]]:
    """Return who is measured; who is not installed is told and left out."""
    found: dict[str, Callable[[str], Figures]] = {
        PLAIN: lambda database: plain(database, jobs),
        "jobstore, 1 caller": lambda database: asyncio.run(with_store(database, jobs, 1)),
        "jobstore, 64 callers": lambda database: asyncio.run(with_store(database, jobs, 64)),
        "jobstore, 256 callers": lambda database: asyncio.run(with_store(database, jobs, 256)),
        WORKER: lambda database: asyncio.run(with_worker(database, jobs)),
    }
    others: dict[str, Callable[[str], Figures]] = {
        "procrastinate": lambda database: asyncio.run(with_procrastinate(database, jobs)),
        "pgqueuer": lambda database: asyncio.run(with_pgqueuer(database, jobs)),
    }
    for name, measure in others.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out")
        else:
            found[f"{name}, {CONCURRENCY} at a time"] = measure
    return found


def main(arguments: list[str]) -> None:
    """Measure in turn, several rounds, and print the best of each: what a busy machine took away is left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4_000, help="jobs for each figure (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all of them (default %(default)s)")
    parser.add_argument("--wakes", type=int, default=300, help="jobs enqueued singly (default %(default)s)")
    options = parser.parse_args(arguments)
    measured = contestants(options.jobs)
    best = dict.fromkeys(measured, (0.0, 0.0))
    with postgres.running_server() as server:
        for _ in range(options.rounds):
            for name, measure in measured.items():
                with postgres.new_database(server) as database:
                    enqueued, processed = measure(database)
                best[name] = (max(best[name][0], enqueued), max(best[name][1], processed))
        with postgres.new_database(server) as database:
            latencies = asyncio.run(waking.in_another_process(database, options.wakes))
    show(best)
    print(f"\nfrom enqueue to handler in another process: {waking.described(latencies)}")


def show(best: dict[str, Figures]) -> None:
    """Print the figures, then how the store with its worker compares with each of the others."""
    print(f"{'':36}{'enqueue/s':>12}{'ratio':>8}{'process/s':>12}{'ratio':>8}")
    ours = best[WORKER]
    for name, (enqueued, processed) in best.items():
        print(f"{name:36}{enqueued:12,.0f}{ours[0] / enqueued:8.2f}{processed:12,.0f}{ours[1] / processed:8.2f}")
    print(f"ratio: how many times as fast is: {WORKER}")


if __name__ == "__main__":
    main(sys.argv[1:])
