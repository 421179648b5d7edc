"""Workers look after their store: now and then, one of them, and never at the cost of a job."""

from __future__ import annotations

import asyncio

import pytest

from jobstore import InvalidArgument, JobStore
from jobstore.testing import FakeClock
from jobstore.workers import JobContext, Worker
from tests.conformance.support import enqueue, eventually


def worker_of(store: JobStore, maintenance: float | None = 0.01) -> Worker:
    worker = Worker(store, maintenance=maintenance)

    @worker.handles("greeting")
    async def greet(_job: JobContext) -> str:
        return "Hello!"

    return worker


async def test_a_worker_applies_the_policies(store: JobStore, clock: FakeClock) -> None:
    await store.retention.set("done", older_than=60, status="completed")
    worker = worker_of(store)
    running = asyncio.create_task(worker.run())
    job = await enqueue(store)
    await store.jobs.wait(job.id, timeout=30)

    async def tasks() -> bool:
        return len(await store.execute("SELECT task FROM maintenance")) == 3

    await eventually(tasks)
    assert await store.jobs.count() == 1
    clock.advance(3600)

    async def pruned() -> bool:
        return await store.jobs.count() == 0

    await eventually(pruned)
    worker.stop()
    await running


async def test_a_worker_that_may_not_leaves_the_store_alone(store: JobStore) -> None:
    await enqueue(store)
    await worker_of(store, None).run(drain=True)
    assert await store.execute("SELECT task FROM maintenance") == []


async def test_a_failing_maintenance_harms_no_job_and_is_tried_again(
    store: JobStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Someone takes the policies' table away."""
    await store.execute("ALTER TABLE retention_policies RENAME TO away")
    worker = worker_of(store)
    running = asyncio.create_task(worker.run())
    await eventually(lambda: "maintenance failed" in caplog.text)
    job = await enqueue(store)
    assert (await store.jobs.wait(job.id, timeout=30)).status == "completed"
    await store.execute("ALTER TABLE away RENAME TO retention_policies")
    await store.retention.set("all", older_than=0)
    clock.advance(3600)

    async def pruned() -> bool:
        return await store.jobs.count() == 0

    await eventually(pruned)
    worker.stop()
    await running


async def test_a_worker_stops_in_the_middle_of_its_maintenance(store: JobStore) -> None:
    for _ in range(30):
        await store.jobs.cancel((await enqueue(store)).id)
    await store.retention.set("all", older_than=0)
    worker = worker_of(store, 0.000_001)
    running = asyncio.create_task(worker.run())

    async def begun() -> bool:
        return bool(await store.execute("SELECT task FROM maintenance"))

    await eventually(begun)
    worker.stop()
    async with asyncio.timeout(60):
        await running


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
async def test_an_interval_that_is_none_is_refused(store: JobStore, interval: float) -> None:
    with pytest.raises(InvalidArgument, match="maintenance"):
        Worker(store, maintenance=interval)
