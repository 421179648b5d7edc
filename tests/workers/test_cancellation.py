"""Cancelling a running job: its handler hears at once, whoever asks, and one that does not listen is fenced off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from jobstore import AttemptOutcome, Job, JobStatus, JobStore, LeaseLost
from jobstore.leases import LOOK_SECONDS
from jobstore.testing import FakeClock
from jobstore.workers import JobContext, SyncJobContext, Worker
from tests.conformance.support import eventually

LEASE = 3600.0
"""Its beats are too far apart to tell of anything in time."""


async def enqueue(store: JobStore, **fields: str) -> Job:
    return await store.jobs.enqueue("p", task_type="task", api_type="api", **fields)  # type: ignore[arg-type]


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """Run a worker meanwhile, and stop it at the end."""
    running = asyncio.ensure_future(worker.run(grace=0))
    try:
        yield
    finally:
        worker.stop()
        async with asyncio.timeout(60):
            await running


class Handler:
    """Streams a piece, then waits until it is cancelled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def __call__(self, job: JobContext) -> str:
        await job.write("a beginning")
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError


@pytest.mark.parametrize("who", ["itself", "another"])
@pytest.mark.parametrize("how", ["job", "session"])
async def test_a_handler_hears_of_it_at_once_whoever_asks(
    store: JobStore, database: Path | str, outputs: Path, clock: FakeClock, who: str, how: str
) -> None:
    session = (await store.sessions.create(name="s", project_directory="/src")).id
    worker, handler = Worker(store, lease=LEASE), Handler()
    worker.handles("task")(handler)
    job = await enqueue(store, session_id=session)
    async with JobStore(database, outputs=outputs, clock=clock) as another, working(worker):
        await handler.began.wait()
        asking = store if who == "itself" else another
        clock.advance(1)
        if how == "job":
            await asking.jobs.cancel(job.id)
        else:
            assert await asking.jobs.cancel_session(session) == 1
        await handler.cancelled.wait()
        done = await store.jobs.wait(job.id, timeout=60)
    assert done.status is JobStatus.CANCELED
    assert await store.jobs.read_response(job.id) == "a beginning"
    [attempt] = await store.jobs.attempts(job.id)
    assert attempt.outcome is AttemptOutcome.CANCELED
    assert done.cancel_requested_at is not None
    assert attempt.cancel_acknowledged_at is not None
    assert attempt.finished_at is not None
    assert done.cancel_requested_at <= attempt.cancel_acknowledged_at <= attempt.finished_at


async def test_a_cancellation_that_came_before_its_claim_was_known_is_heard_within_a_second(store: JobStore) -> None:
    """And not only with the next beat, which may be far away."""
    await enqueue(store)
    await enqueue(store)
    [first, second] = await store.jobs.claim("w", limit=2)
    heard = asyncio.Event()
    with store.jobs.lease_kept(first, lease=LEASE):
        await eventually(lambda: store.stats().wake.waiting == 1)
        await store.jobs.cancel(second.job_id)
        await asyncio.sleep(2 * LOOK_SECONDS)  # it looks, and sees nothing that concerns it
        await eventually(lambda: store.stats().wake.waiting == 1)
        with store.jobs.lease_kept(second, lease=LEASE, cancel_requested=heard.set):
            async with asyncio.timeout(60):
                await heard.wait()


async def test_a_recorded_call_hears_of_it_at_once(store: JobStore) -> None:
    async with store.jobs.record("p", task_type="task", api_type="api") as call:
        await store.jobs.cancel(call.job.id)
        await eventually(lambda: call.cancel_requested)
    [attempt] = await store.jobs.attempts(call.job.id)
    assert attempt.cancel_acknowledged_at is not None


async def test_a_handler_that_shields_itself_is_fenced_off_and_its_slot_is_free(
    store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(store, lease=LEASE, concurrency=1, cancel_grace=0.05)
    began, may_end, refused = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def deaf(job: JobContext) -> str:
        began.set()
        with anyio.CancelScope(shield=True):
            await may_end.wait()
            try:
                await job.progress(status_message="still here")
            except LeaseLost:
                refused.set()
        return "too late"

    @worker.handles("next")
    async def following(_job: JobContext) -> str:
        return "done"

    job = await enqueue(store)
    async with working(worker):
        await began.wait()
        await store.jobs.cancel(job.id)
        assert (await store.jobs.wait(job.id, timeout=60)).status is JobStatus.CANCELED
        after = await store.jobs.enqueue("p", task_type="next", api_type="api")
        assert (await store.jobs.wait(after.id, timeout=60)).response == "done"
        may_end.set()
        await refused.wait()
        while "ended too late" not in caplog.text:
            await asyncio.sleep(0.001)
    found = await store.jobs.get(job.id)
    assert (found.status, found.response) == (JobStatus.CANCELED, None)
    assert found.status_message != "still here"


async def test_a_worker_stops_though_a_handler_does_not(store: JobStore) -> None:
    worker = Worker(store, lease=LEASE, cancel_grace=0.05)
    began, may_end = asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def deaf(_job: JobContext) -> str:
        began.set()
        with anyio.CancelScope(shield=True):
            await may_end.wait()
        return "too late"

    job = await enqueue(store)
    async with working(worker):
        await began.wait()
    found = await store.jobs.get(job.id)
    assert (found.status, found.attempts_used) == (JobStatus.IDLE, 0)
    may_end.set()


async def test_an_answer_that_is_given_all_the_same_counts(store: JobStore) -> None:
    worker = Worker(store, lease=LEASE)
    began = asyncio.Event()

    @worker.handles("task")
    async def nearly_done(_job: JobContext) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "paid for"
        raise AssertionError

    job = await enqueue(store)
    async with working(worker):
        await began.wait()
        await store.jobs.cancel(job.id)
        done = await store.jobs.wait(job.id, timeout=60)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "paid for")


async def test_an_error_that_a_cancellation_became_is_no_failure(store: JobStore) -> None:
    worker = Worker(store, lease=LEASE)
    began = asyncio.Event()

    @worker.handles("task")
    async def converts(_job: JobContext) -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("interrupted") from None
        raise AssertionError

    job = await enqueue(store)
    async with working(worker):
        await began.wait()
        await store.jobs.cancel(job.id)
        done = await store.jobs.wait(job.id, timeout=60)
    assert (done.status, done.error_type) == (JobStatus.CANCELED, None)


# Handlers in threads


async def test_a_thread_that_looks_is_told_and_its_partial_stays(store: JobStore) -> None:
    worker = Worker(store, lease=LEASE)
    began = threading.Event()

    @worker.handles("task")
    def handle(job: SyncJobContext) -> str | None:
        job.write("a beginning")
        job.progress(status_message="begun")
        began.set()
        assert job.wait_cancelled(60)
        assert job.cancelled
        return "of which the caller must not know"

    job = await enqueue(store)
    async with working(worker):
        await asyncio.to_thread(began.wait, 60)
        assert (await store.jobs.get(job.id)).status_message == "begun"
        await store.jobs.cancel(job.id)
        done = await store.jobs.wait(job.id, timeout=60)
    assert (done.status, done.response) == (JobStatus.CANCELED, None)
    assert await store.jobs.read_response(job.id) == "a beginning"


async def test_a_thread_that_did_not_look_has_answered(store: JobStore) -> None:
    worker = Worker(store, lease=LEASE)
    began, may_end = threading.Event(), threading.Event()

    @worker.handles("task")
    def handle(_job: SyncJobContext) -> str:
        began.set()
        may_end.wait(60)
        return "paid for"

    job = await enqueue(store)
    async with working(worker):
        await asyncio.to_thread(began.wait, 60)
        await store.jobs.cancel(job.id)
        may_end.set()
        done = await store.jobs.wait(job.id, timeout=60)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "paid for")


@pytest.mark.parametrize("grace", [0.0, 0.05])
async def test_a_thread_that_takes_too_long_is_fenced_off_with_a_warning(
    store: JobStore, caplog: pytest.LogCaptureFixture, grace: float
) -> None:
    worker = Worker(store, lease=LEASE, cancel_grace=grace)
    began, may_end, refused = threading.Event(), threading.Event(), threading.Event()

    @worker.handles("task", timeout=3600)
    def handle(job: SyncJobContext) -> str:
        job.write("a beginning")
        began.set()
        may_end.wait(60)
        try:
            job.write("more")
        except LeaseLost:
            refused.set()
        return "too late"

    job = await store.jobs.enqueue("p", task_type="task", api_type="api", max_attempts=1)
    async with working(worker):
        assert await asyncio.to_thread(began.wait, 60)
        [attempt] = worker._running.values()
        attempt.interrupt("timeout")  # as its timer does, which might have been faster than the beginning
        done = await store.jobs.wait(job.id, timeout=60)
        assert (done.status, done.error_type) == (JobStatus.FAILED, "timeout")
        assert "its result will be dropped" in caplog.text
        may_end.set()
        assert await asyncio.to_thread(refused.wait, 60)
    assert (await store.jobs.get(job.id)).response is None
    assert await store.jobs.read_response(job.id) == "a beginning"
