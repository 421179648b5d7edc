"""Benchmark of the store on PostgreSQL, beside plain psycopg, procrastinate and pgqueuer on the same server.

Run by hand: `python tests/benchmarks/postgres.py`. The last two are no dependencies of this project: install them
with `pip install "procrastinate[psycopg]" pgqueuer asyncpg`, or they are left out. All figures are operations a second
at full durability; the ratios, not the figures, are what to compare. What is done differs: the store and plain psycopg
record an attempt and keep the answer of each job, the other two keep no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import psycopg
from uuid_utils import uuid7

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, it uses the server that the tests use

from jobstore import JobStore
from jobstore.clock import system_clock
from jobstore.workers import JobContext, Worker
from tests import postgres

PLAIN = "plain psycopg, a commit each"
PROMPT, RESPONSE = "Say hello", "Hello"
CONCURRENCY = 64

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

Figures = tuple[float, float]
"""Enqueues a second, and claims with their completion."""


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


async def with_store(database: str, jobs: int, callers: int) -> Figures:
    """Return the same for the store, with so many concurrent callers."""
    async with JobStore(database, migrate=True) as store:

        async def enqueue() -> None:
            await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")

        async def claim_and_complete() -> None:
            [claim] = await store.jobs.claim("worker")
            await store.jobs.complete(claim, RESPONSE)

        return await rate(enqueue, jobs, callers), await rate(claim_and_complete, jobs, callers)


async def with_procrastinate(database: str, jobs: int) -> Figures:
    """Return the same for procrastinate: concurrent `defer_async`, then its worker until nothing is left."""
    import procrastinate

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


def check(done: int, jobs: int) -> None:
    if done != jobs:
        raise SystemExit(f"{done} of {jobs} jobs were done")


async def rate(work: Callable[[], Awaitable[None]], count: int, callers: int) -> float:
    """Return how often a second `work` is done by so many concurrent callers."""
    remaining = iter(range(count))

    async def call() -> None:
        for _ in remaining:
            await work()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(call())
    return count / (time.perf_counter() - started)


async def wake_latencies(database: str, jobs: int) -> list[float]:
    """Return how long each job, enqueued alone, waited for a worker in another process, in seconds."""
    async with JobStore(database, migrate=True) as store:
        worker = await asyncio.create_subprocess_exec(sys.executable, __file__, "--worker", database)
        try:
            await latency(store)  # the worker is up
            return [await latency(store) for _ in range(jobs)]
        finally:
            worker.terminate()
            await worker.wait()


async def latency(store: JobStore) -> float:
    started = time.time()
    job = await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")
    done = await store.jobs.wait(job.id, timeout=60)
    return float(done.response or 0) - started


async def work(database: str) -> None:
    """Answer each job with the time at which its handler started."""
    async with JobStore(database) as store:
        worker = Worker(store)

        @worker.handles("task")
        async def answer(_job: JobContext) -> str:
            return repr(time.time())

        await worker.run()


def contestants(jobs: int) -> dict[str, Callable[[str], Figures]]:
    """Return who is measured; who is not installed is told and left out."""
    few = max(1, jobs // 4)
    found: dict[str, Callable[[str], Figures]] = {
        PLAIN: lambda database: plain(database, few),
        "jobstore, 1 caller": lambda database: asyncio.run(with_store(database, few, 1)),
        "jobstore, 64 callers": lambda database: asyncio.run(with_store(database, jobs, 64)),
        "jobstore, 256 callers": lambda database: asyncio.run(with_store(database, jobs, 256)),
    }
    others: dict[str, Callable[[str], Figures]] = {
        "procrastinate": lambda database: asyncio.run(with_procrastinate(database, few)),
        "pgqueuer": lambda database: asyncio.run(with_pgqueuer(database, few)),
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
                    enqueued, completed = measure(database)
                best[name] = (max(best[name][0], enqueued), max(best[name][1], completed))
        with postgres.new_database(server) as database:
            latencies = asyncio.run(wake_latencies(database, options.wakes))
    show(best)
    cuts = statistics.quantiles(latencies, n=100)
    print(
        f"\nfrom enqueue to handler in another process, {len(latencies)} jobs: "
        f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms"
    )


def show(best: dict[str, Figures]) -> None:
    """Print the figures, then how the store with 64 callers compares with each of the others."""
    print(f"{'':36}{'enqueue/s':>12}{'ratio':>8}{'claim+complete/s':>20}{'ratio':>8}")
    ours = best["jobstore, 64 callers"]
    for name, (enqueued, completed) in best.items():
        print(f"{name:36}{enqueued:12,.0f}{ours[0] / enqueued:8.2f}{completed:20,.0f}{ours[1] / completed:8.2f}")
    print("ratio: how many times as fast the store with 64 callers is")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        asyncio.run(work(sys.argv[2]))
    else:
        main(sys.argv[1:])
