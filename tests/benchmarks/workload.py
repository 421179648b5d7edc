"""The work that the benchmarks measure on any engine, and how they count it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from jobstore import JobStore
from jobstore.workers import JobContext, Worker

PROMPT, RESPONSE = "Say hello", "Hello"
CONCURRENCY = 64

Figures = tuple[float, float]
"""Enqueues a second, and jobs that were processed: claimed, and completed with their answer."""


async def with_store(database: str, jobs: int, callers: int) -> Figures:
    """Return what so many concurrent callers of a store do, each of whom claims and completes one job at a time."""
    async with JobStore(database, migrate=True) as store:

        async def claim_and_complete() -> None:
            [claim] = await store.jobs.claim("worker")
            await store.jobs.complete(claim, RESPONSE)

        return await enqueue_rate(store, jobs, callers), await rate(claim_and_complete, jobs, callers)


async def with_worker(database: str, jobs: int, concurrency: int = CONCURRENCY) -> Figures:
    """Return what `CONCURRENCY` callers enqueue, and a worker of some concurrency processes until nothing is left."""
    async with JobStore(database, migrate=True) as store:
        enqueued = await enqueue_rate(store, jobs, CONCURRENCY)
        worker = Worker(store, concurrency=concurrency)

        @worker.handles("task")
        async def answer(_job: JobContext) -> str:
            return RESPONSE

        started = time.perf_counter()
        await worker.run(drain=True)
        elapsed = time.perf_counter() - started
        check((await store.jobs.count(status="completed")), jobs)
    return enqueued, jobs / elapsed


async def enqueue_rate(store: JobStore, jobs: int, callers: int) -> float:
    async def enqueue() -> None:
        await store.jobs.enqueue(PROMPT, task_type="task", api_type="api")

    return await rate(enqueue, jobs, callers)


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


def check(done: int, jobs: int) -> None:
    if done != jobs:
        raise SystemExit(f"{done} of {jobs} jobs were done")
