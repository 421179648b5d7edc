"""Benchmark of workers: jobs a second beside plain sqlite3, how soon they wake and cancel, what an idle one costs.

Run by hand: `python tests/benchmarks/workers.py`. Handlers do nothing but answer. All databases are at full
durability; the ratios, not the figures, are what to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from uuid_utils import uuid7

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from jobstore import JobStore
from tests import postgres
from tests.benchmarks import waking
from tests.benchmarks.group_commit import PLAIN, TRANSACTION, plain
from tests.benchmarks.workload import with_worker

CONCURRENCIES = (32, 256)
MIB = 1024 * 1024

NewDatabase = Callable[[], str]


@contextmanager
def engines() -> Iterator[dict[str, NewDatabase]]:
    """Yield what makes a new database, by the engine's name."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(postgres.running_server())
        yield {
            "SQLite": lambda: str(Path(folder, f"{uuid7()}.db")),
            "PostgreSQL": lambda: stack.enter_context(postgres.new_database(server)),
        }


def rates(databases: dict[str, NewDatabase], jobs: int, rounds: int) -> None:
    """Print how many jobs a second are claimed, handled and completed, the best of some rounds in turns."""
    contestants: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        contestants[PLAIN] = lambda: plain(Path(folder), jobs)[1]
        for engine, new in databases.items():
            for concurrency in CONCURRENCIES:
                contestants[f"{engine}, Worker of {concurrency}"] = processing(new, jobs, concurrency)
        best = dict.fromkeys(contestants, 0.0)
        for _ in range(rounds):
            for name, measure in contestants.items():
                best[name] = max(best[name], measure())
    print(f"{'':36}{'process/s':>12}{'ratio':>8}")
    for name, figure in best.items():
        print(f"{name:36}{figure:12,.0f}{figure / best[PLAIN]:8.2f}")


def processing(new_database: NewDatabase, jobs: int, concurrency: int) -> Callable[[], float]:
    return lambda: asyncio.run(with_worker(new_database(), jobs, concurrency))[1]


async def idle_cost(database: str, seconds: float) -> tuple[float, float]:
    """Return the share of a core and the MiB of memory that an idle worker in a process of its own takes."""
    async with JobStore(database, migrate=True) as store, waking.worker_process(database) as worker:
        while not await store.workers.list():
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # it is up, and has looked around
        process = psutil.Process(worker.pid)
        before = process.cpu_times()
        await asyncio.sleep(seconds)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return used / seconds, process.memory_info().rss / MIB


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=6_400, help="jobs for each figure (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all of them (default %(default)s)")
    parser.add_argument("--wakes", type=int, default=300, help="jobs enqueued singly (default %(default)s)")
    parser.add_argument("--cancels", type=int, default=200, help="jobs canceled while they run (default %(default)s)")
    parser.add_argument("--idle", type=float, default=30, help="seconds to watch an idle worker (default %(default)s)")
    options = parser.parse_args(arguments)
    jobs = max(TRANSACTION, options.jobs // TRANSACTION * TRANSACTION)
    with engines() as databases:
        rates(databases, jobs, options.rounds)
        for engine, new in databases.items():
            same = asyncio.run(waking.in_this_process(new(), options.wakes))
            other = asyncio.run(waking.in_another_process(new(), options.wakes))
            cancels = asyncio.run(waking.cancellations(new(), options.cancels))
            share, memory = asyncio.run(idle_cost(new(), options.idle))
            print(f"\n{engine}")
            print(f"from enqueue to handler, same process:    {waking.described(same)}")
            print(f"from enqueue to handler, another process: {waking.described(other)}")
            print(f"from cancel to handler, another process:  {waking.described(cancels)}")
            print(f"an idle worker's process: {share:.2%} of a core, {memory:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
