"""Cancelled while their row was waiting or being written: each verb leaves a file that its row names, or none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from jobstore import Claim, JobStatus, JobStore, NewJob
from jobstore.operations.texts import move_into_row
from jobstore.testing import FakeClock
from tests.conformance.support import SPILLED, enqueue, eventually, files, start, streamed

Verb = Callable[[JobStore, Claim], Awaitable[object]]


@asynccontextmanager
async def held_writer(store: JobStore) -> AsyncIterator[None]:
    """Hold the writer's thread, so that no batch is committed meanwhile."""
    go_on = threading.Event()
    held = store._open.backend.engine._writer.submit(lambda _: go_on.wait(60))
    try:
        yield
    finally:
        go_on.set()
        assert await held


async def cancel_in_the_batch(store: JobStore, call: Awaitable[object]) -> None:
    queue = store._open.backend.engine._queue
    async with held_writer(store):
        task = asyncio.ensure_future(call)
        await eventually(lambda: bool(queue._in_flight))
        task.cancel()
        await asyncio.wait([task], timeout=0.01)
    await asyncio.gather(task, return_exceptions=True)
    await store.kv.set("behind", "the batch")


async def cancel_in_the_queue(store: JobStore, call: Awaitable[object]) -> None:
    queue = store._open.backend.engine._queue
    async with held_writer(store):
        before = asyncio.create_task(store.kv.set("in", "front"))
        await eventually(lambda: bool(queue._in_flight))
        task = asyncio.ensure_future(call)
        await eventually(lambda: store.stats().writer.waiting_operations == 1)
        task.cancel()
        await asyncio.wait([task], timeout=0.01)
    await asyncio.gather(task, return_exceptions=True)
    await before


async def open_output(store: JobStore, claimed: Claim) -> None:
    async with store.jobs.output(claimed):
        await asyncio.Event().wait()


async def record(store: JobStore, _claimed: Claim) -> None:
    async with store.jobs.record(SPILLED, task_type="t", api_type="a"):
        await asyncio.Event().wait()


VERBS: dict[str, Verb] = {
    "enqueue": lambda store, _: enqueue(store, SPILLED),
    "enqueue_many": lambda store, _: store.jobs.enqueue_many(
        [NewJob(prompt=SPILLED, task_type="t", api_type="a") for _ in range(2)]
    ),
    "complete": lambda store, claimed: store.jobs.complete(claimed, SPILLED),
    "fail": lambda store, claimed: store.jobs.fail(claimed, "no"),
    "output": open_output,
    "record": record,
}


async def named(store: JobStore) -> set[str]:
    rows = await store.execute(
        """
        SELECT prompt_file_path AS path FROM background_jobs UNION SELECT output_file_path FROM background_jobs
        UNION SELECT output_file_path FROM job_attempts
        """
    )
    return {row["path"] for row in rows} - {None}


@pytest.mark.parametrize("cancel", [cancel_in_the_batch, cancel_in_the_queue])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_what_is_cancelled_leaves_no_file_without_a_row_and_no_row_without_its_file(
    store: JobStore, verb: Verb, cancel: Callable[[JobStore, Awaitable[object]], Awaitable[None]]
) -> None:
    claimed = await start(store, SPILLED)
    await cancel(store, verb(store, claimed))
    await store.kv.set("behind", "whatever was still queued")
    await store.kv.set("and", "behind what that has queued")
    paths = await named(store)
    await eventually(lambda: files(store) == paths)
    for job in (await store.jobs.list()).items:
        assert await store.jobs.read_prompt(job.id) == SPILLED
        assert job.status is not JobStatus.RUNNING or job.id == claimed.job_id


async def test_what_was_in_the_batch_is_done_and_what_was_in_the_queue_is_not(store: JobStore) -> None:
    one, two = await start(store), await start(store)
    await cancel_in_the_batch(store, store.jobs.complete(one, SPILLED))
    await cancel_in_the_queue(store, store.jobs.complete(two, SPILLED))
    assert (await store.jobs.get(one.job_id)).status is JobStatus.COMPLETED
    assert (await store.jobs.get(two.job_id)).status is JobStatus.RUNNING


async def test_a_recorded_call_that_was_cancelled_as_it_began_is_canceled(store: JobStore) -> None:
    claimed = await start(store)
    await cancel_in_the_batch(store, record(store, claimed))
    await store.kv.set("behind", "what the cancellation has queued")
    [job] = (await store.jobs.list(status="canceled")).items
    assert await store.jobs.read_prompt(job.id) == SPILLED


async def test_a_small_stream_whose_completion_was_cancelled_is_in_the_row_and_its_file_is_gone(
    store: JobStore,
) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "the answer")
    queue = store._open.backend.engine._queue
    completing = asyncio.ensure_future(store.jobs.complete(claimed))
    while not any(request.make_operation is move_into_row for request in queue._in_flight):
        await asyncio.sleep(0)
    completing.cancel()
    await asyncio.gather(completing, return_exceptions=True)
    await store.kv.set("behind", "the batch")
    assert (await store.jobs.get(claimed.job_id)).response == "the answer"
    await eventually(lambda: not files(store))


async def test_pruning_that_was_cancelled_takes_the_files_of_what_it_deleted(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, SPILLED)
    await store.jobs.complete(claimed, SPILLED)
    clock.advance(1)
    await cancel_in_the_batch(store, store.jobs.prune(older_than=0))
    assert await store.jobs.count() == 0
    await eventually(lambda: not files(store))


async def test_an_output_that_was_cancelled_as_it_opened_lets_the_job_go_on(store: JobStore) -> None:
    claimed = await start(store)
    await cancel_in_the_queue(store, open_output(store, claimed))
    await streamed(store, claimed, "the answer")
    assert (await store.jobs.complete(claimed)).response == "the answer"
    await eventually(lambda: not files(store))
