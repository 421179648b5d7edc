"""A worker in a process of its own that tells when its handlers begin and are cancelled, and how long that took."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

from jobstore import JobStore
from jobstore.workers import JobContext, Worker
from tests.benchmarks.workload import PROMPT, RESPONSE


async def in_this_process(database: str, jobs: int) -> list[float]:
    """Return how long each job, enqueued alone, waited for a worker of the same store, in seconds."""
    async with JobStore(database, migrate=True) as store:
        worker = Worker(store)
        began: asyncio.Queue[float] = asyncio.Queue()

        @worker.handles("task")
        async def handle(_job: JobContext) -> str:
            began.put_nowait(time.perf_counter())
            return RESPONSE

        async def latency() -> float:
            started = time.perf_counter()
            job = await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")
            found = await began.get() - started
            await store.jobs.wait(job.id, timeout=60)
            return found

        running = asyncio.create_task(worker.run())
        await latency()  # the worker is up
        found = [await latency() for _ in range(jobs)]
        worker.stop()
        await running
    return found


async def in_another_process(database: str, jobs: int) -> list[float]:
    """Return the same for a worker in another process."""
    async with JobStore(database, migrate=True) as store, worker_process(database):
        await _latency(store)
        return [await _latency(store) for _ in range(jobs)]


async def cancellations(database: str, jobs: int) -> list[float]:
    """Return how long it took from asking for each of some jobs to be canceled until its handler in another process
    was cancelled, in seconds.
    """
    async with JobStore(database, migrate=True) as store, worker_process(database) as worker:
        return [await _cancellation(store, worker) for _ in range(jobs)]


@asynccontextmanager
async def worker_process(database: str) -> AsyncIterator[Process]:
    """Run a worker in a process of its own meanwhile, for the task types `task` and `endless`."""
    worker = await asyncio.create_subprocess_exec(sys.executable, __file__, database, stdout=PIPE)
    try:
        yield worker
    finally:
        worker.terminate()
        await worker.wait()


def described(latencies: Sequence[float]) -> str:
    """Return the median and the 99th percentile in words."""
    cuts = statistics.quantiles(latencies, n=100)
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms ({len(latencies)} times)"


async def _latency(store: JobStore) -> float:
    started = time.time()
    job = await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")
    done = await store.jobs.wait(job.id, timeout=60)
    return float(done.response or 0) - started


async def _cancellation(store: JobStore, worker: Process) -> float:
    job = await store.jobs.enqueue(PROMPT, task_type="endless", api_type="api")
    await _line(worker)  # it has begun
    started = time.time()
    await store.jobs.cancel(job.id)
    cancelled = float(await _line(worker))
    await store.jobs.wait(job.id, timeout=60)
    return cancelled - started


async def _line(worker: Process) -> str:
    if worker.stdout is None:
        raise RuntimeError("it has no output")
    async with asyncio.timeout(60):
        return (await worker.stdout.readline()).decode()


async def _tell_the_time(_job: JobContext) -> str:
    return repr(time.time())


async def _go_on(_job: JobContext) -> None:
    print("begun", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print(time.time(), flush=True)


async def _work(database: str) -> None:
    async with JobStore(database) as store:
        worker = Worker(store)
        worker.handles("task")(_tell_the_time)
        worker.handles("endless")(_go_on)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
