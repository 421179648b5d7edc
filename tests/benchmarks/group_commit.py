"""Benchmark of group commit: how fast the store enqueues, claims and completes, beside plain sqlite3 in the same run.

Run by hand: `python tests/benchmarks/group_commit.py`. All figures are operations a second at full
durability; the ratios, not the figures, are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import aiosqlite
from uuid_utils import uuid7

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from jobstore import JobStore
from jobstore.clock import system_clock
from jobstore.engines.sqlite import connect_writer
from jobstore.migrate import Migrator
from tests.benchmarks.workload import PROMPT, RESPONSE, rate, with_store, with_worker

TRANSACTION = 64
PLAIN = "plain sqlite3, 64 a transaction"

INSERT = """
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, prompt)
    VALUES (?, ?, ?, 'idle', ?, ?, ?, ?)
"""
CLAIM = """
    UPDATE background_jobs SET status = 'running', attempt = attempt + 1, attempts_used = attempts_used + 1,
        started_at = :now, updated_at = :now
    WHERE id = (
        SELECT id FROM background_jobs WHERE status = 'idle' AND task_type = :task AND api_type = :api
        ORDER BY priority DESC, run_at, id LIMIT 1)
    RETURNING id, attempt, prompt
"""
BEGIN_ATTEMPT = """
    INSERT INTO job_attempts (job_id, attempt, worker_id, lease_expires_at, started_at)
    VALUES (?, ?, 'worker', ?, ?)
"""
COMPLETE = """
    UPDATE background_jobs SET status = 'completed', finished_at = :now, updated_at = :now, response = :response
    WHERE id = :id AND attempt = :attempt AND status = 'running'
"""
END_ATTEMPT = """
    UPDATE job_attempts SET finished_at = :now, outcome = 'completed' WHERE job_id = :id AND attempt = :attempt
"""


LANE = {"task": "task", "api": "api"}


def new_path(folder: Path) -> str:
    return str(folder / f"{uuid7()}.db")


def new_row() -> tuple[str | int, ...]:
    """Return the values of a new job, bound as any program would."""
    now = system_clock()
    return str(uuid7()), LANE["task"], LANE["api"], now, now, now, PROMPT


def outcome(job_id: str, attempt: int) -> dict[str, str | int]:
    """Return the values that a completion binds."""
    return {"now": system_clock(), "id": job_id, "attempt": attempt, "response": RESPONSE}


@contextmanager
def plain_database(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / f"{uuid7()}.db"
    Migrator(path).run()
    with closing(connect_writer(path, "full")) as connection:
        yield connection


def plain(folder: Path, jobs: int) -> tuple[float, float]:
    """Return what one thread with plain sqlite3 does a second: enqueues, and claims with their completion."""
    with plain_database(folder) as connection:
        started = time.perf_counter()
        for _ in range(0, jobs, TRANSACTION):
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(TRANSACTION):
                connection.execute(INSERT, new_row())
            connection.execute("COMMIT")
        enqueued = time.perf_counter()
        for _ in range(0, jobs, TRANSACTION):
            connection.execute("BEGIN IMMEDIATE")
            claims = [plain_claim(connection) for _ in range(TRANSACTION)]
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            for job_id, attempt in claims:
                values = outcome(job_id, attempt)
                connection.execute(COMPLETE, values)
                connection.execute(END_ATTEMPT, values)
            connection.execute("COMMIT")
        done = time.perf_counter()
    return jobs / (enqueued - started), jobs / (done - enqueued)


def plain_claim(connection: sqlite3.Connection) -> tuple[str, int]:
    now = system_clock()
    [(job_id, attempt, _)] = connection.execute(CLAIM, {"now": now, **LANE}).fetchall()
    connection.execute(BEGIN_ATTEMPT, (job_id, attempt, now + 30_000, now))
    return job_id, attempt


def plain_single_commit(folder: Path, rounds: int) -> float:
    """Return the median of one enqueue with its own commit, in seconds."""
    with plain_database(folder) as connection:

        def enqueue() -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(INSERT, new_row())
            connection.execute("COMMIT")

        return statistics.median(timed(enqueue) for _ in range(rounds))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def one_await_a_statement(folder: Path, jobs: int, callers: int) -> tuple[float, float]:
    """Return the same for aiosqlite used the usual way: a commit a call, an await a statement."""
    path = folder / f"{uuid7()}.db"
    Migrator(path).run()
    lock = asyncio.Lock()
    async with aiosqlite.connect(path, isolation_level=None) as database:
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "wal_autocheckpoint=0"):
            await database.execute(f"PRAGMA {pragma}")

        async def transaction(*statements: tuple[str, object]) -> list[tuple[str, int]]:
            rows: list[tuple[str, int]] = []
            async with lock:
                await database.execute("BEGIN IMMEDIATE")
                for sql, values in statements:
                    async with database.execute(sql, values) as cursor:  # type: ignore[arg-type]
                        rows += [(row[0], row[1]) for row in await cursor.fetchall()]
                await database.execute("COMMIT")
            return rows

        async def enqueue() -> None:
            await transaction((INSERT, new_row()))

        async def claim_and_complete() -> None:
            async with lock:
                now = system_clock()
                await database.execute("BEGIN IMMEDIATE")
                async with database.execute(CLAIM, {"now": now, **LANE}) as cursor:
                    [(job_id, attempt, _)] = await cursor.fetchall()
                await database.execute(BEGIN_ATTEMPT, (job_id, attempt, now + 30_000, now))
                await database.execute("COMMIT")
            values = outcome(job_id, attempt)
            await transaction((COMPLETE, values), (END_ATTEMPT, values))

        return await rate(enqueue, jobs, callers), await rate(claim_and_complete, jobs, callers)


async def lone_caller(folder: Path, rounds: int) -> tuple[float, float]:
    """Return the medians of one enqueue by a lone caller and of one thread hop, in seconds."""
    async with JobStore(folder / f"{uuid7()}.db", migrate=True) as store:
        enqueues, hops = [], []
        for _ in range(rounds):
            started = time.perf_counter()
            await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")
            enqueues.append(time.perf_counter() - started)
    async with aiosqlite.connect(":memory:") as database:
        for _ in range(rounds):
            started = time.perf_counter()
            await database.execute_fetchall("SELECT 1")
            hops.append(time.perf_counter() - started)
    return statistics.median(enqueues), statistics.median(hops)


def main(arguments: list[str]) -> None:
    """Measure in turn, several rounds, and print the best of each: what a busy machine took away is left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6_400, help="jobs for each figure (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all of them (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the databases lie (default: a temporary folder)")
    options = parser.parse_args(arguments)
    jobs = max(TRANSACTION, options.jobs // TRANSACTION * TRANSACTION)
    few = max(TRANSACTION, jobs // 10)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        contestants: dict[str, Callable[[], tuple[float, float]]] = {
            PLAIN: lambda: plain(folder, jobs),
            "jobstore, 1 caller": lambda: asyncio.run(with_store(new_path(folder), few, 1)),
            "jobstore, 64 callers": lambda: asyncio.run(with_store(new_path(folder), jobs, 64)),
            "jobstore, 256 callers": lambda: asyncio.run(with_store(new_path(folder), jobs, 256)),
            "jobstore, 64 callers, Worker of 64": lambda: asyncio.run(with_worker(new_path(folder), jobs)),
            "aiosqlite, an await a statement, 64": lambda: asyncio.run(one_await_a_statement(folder, few, 64)),
        }
        best = dict.fromkeys(contestants, (0.0, 0.0))
        lone = hop = single = float("inf")
        for _ in range(options.rounds):
            for contestant, measure in contestants.items():
                enqueued, completed = measure()
                best[contestant] = (max(best[contestant][0], enqueued), max(best[contestant][1], completed))
            lone_now, hop_now = asyncio.run(lone_caller(folder, few))
            lone, hop, single = min(lone, lone_now), min(hop, hop_now), min(single, plain_single_commit(folder, few))
    print(f"{'':36}{'enqueue/s':>12}{'ratio':>8}{'claim+complete/s':>20}{'ratio':>8}")
    for contestant, figures in best.items():
        show(contestant, figures, best[PLAIN])
    print(
        f"\nlone caller, median: enqueue {lone * 1e6:.0f} µs; plain commit {single * 1e6:.0f} µs + hop "
        f"{hop * 1e6:.0f} µs; ratio {lone / (single + hop):.2f}"
    )


def show(name: str, figures: tuple[float, float], base: tuple[float, float]) -> None:
    """Print one line of the table."""
    enqueue, complete = figures
    print(f"{name:36}{enqueue:12,.0f}{enqueue / base[0]:8.2f}{complete:20,.0f}{complete / base[1]:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
