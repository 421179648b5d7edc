"""The worker claims, runs handlers side by side, reports what became of them, and stops when it is told to."""

from __future__ import annotations

import asyncio
import logging
import os
import threading

import pytest

from jobstore import (
    Claim,
    ConnectionLost,
    DatabaseBusy,
    DiskFull,
    InvalidArgument,
    Job,
    JobStatus,
    JobStore,
    Operation,
    Usage,
)
from jobstore.operations import leasing
from jobstore.operations.leasing import Claimed
from jobstore.testing import FakeClock
from jobstore.workers import Cancel, Fail, JobContext, Outcome, Retry, Snooze, Worker
from jobstore.workers.retries import CAP


async def enqueue(store: JobStore, task_type: str = "task", prompt: str = "p", **fields: object) -> Job:
    return await store.jobs.enqueue(prompt, task_type=task_type, api_type="api", **fields)  # type: ignore[arg-type]


async def drained(store: JobStore, worker: Worker, job: Job) -> Job:
    await worker.run(drain=True)
    return await store.jobs.get(job.id)


async def test_a_returned_text_is_the_answer(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        assert job.attempt == 1
        return job.prompt.upper()

    done = await drained(store, worker, await enqueue(store, prompt="hello"))
    assert done.status is JobStatus.COMPLETED
    assert done.response == "HELLO"


async def test_a_streamed_text_is_the_answer(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> None:
        for piece in ("a", "b", "c"):
            await job.write(piece)
        await job.progress(status_message="nearly there", usage=Usage(output_tokens=3))

    done = await drained(store, worker, await enqueue(store))
    assert done.response == "abc"
    assert (done.status_message, done.output_tokens) == ("nearly there", 3)


async def test_a_sync_handler_runs_in_a_thread(store: JobStore) -> None:
    worker = Worker(store)
    threads = []

    @worker.handles("task")
    def handle(job: JobContext) -> str:
        threads.append(threading.current_thread())
        return job.prompt

    done = await drained(store, worker, await enqueue(store))
    assert done.response == "p"
    assert threads != [threading.main_thread()]


async def test_an_object_with_an_async_call_is_an_async_handler(store: JobStore) -> None:
    class Handler:
        async def __call__(self, job: JobContext) -> str:
            return job.prompt

    worker = Worker(store)
    worker.handles("task")(Handler())
    assert (await drained(store, worker, await enqueue(store))).response == "p"


@pytest.mark.parametrize(
    ("raised", "status", "error_type"),
    [
        (Retry(after=5, reason="later"), JobStatus.SCHEDULED, "retry"),
        (Retry(reason="by the worker's own backoff"), JobStatus.SCHEDULED, "retry"),
        (Fail("never"), JobStatus.FAILED, "failed"),
        (Fail("never", error_type="quota"), JobStatus.FAILED, "quota"),
        (Snooze(5), JobStatus.SCHEDULED, None),
        (Cancel("not wanted"), JobStatus.CANCELED, None),
        (KeyError("k"), JobStatus.SCHEDULED, "KeyError"),
        (TimeoutError("the handler's own"), JobStatus.SCHEDULED, "TimeoutError"),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
async def test_what_a_handler_raises_is_what_becomes_of_the_job(
    store: JobStore, clock: FakeClock, raised: Exception, status: JobStatus, error_type: str | None
) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(_: JobContext) -> None:
        clock.advance(0)
        raise raised

    job = await drained(store, worker, await enqueue(store))
    # Without a delay at all (full jitter may draw one), a retry would be due at once and be tried again.
    assert job.status is status or (status is JobStatus.SCHEDULED and job.attempt == 3)
    assert job.error_type == error_type
    assert job.attempts_used == (0 if isinstance(raised, Snooze) else job.attempt)


async def test_a_job_that_keeps_failing_has_failed_when_its_attempts_are_used_up(
    store: JobStore, clock: FakeClock
) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(_: JobContext) -> None:
        raise RuntimeError

    job = await enqueue(store, max_attempts=3)
    for _ in range(3):
        await worker.run(drain=True)
        clock.advance(CAP)
    job = await store.jobs.get(job.id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 3)


async def test_a_handler_that_takes_too_long_is_ended(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task", timeout=0.01)
    async def handle(_: JobContext) -> None:
        await asyncio.Event().wait()

    job = await drained(store, worker, await enqueue(store, max_attempts=1))
    assert (job.status, job.error_type) == (JobStatus.FAILED, "timeout")


async def test_a_jobs_own_timeout_goes_before_the_handlers(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task", timeout=3600)
    async def handle(_: JobContext) -> None:
        await asyncio.Event().wait()

    job = await drained(store, worker, await enqueue(store, max_attempts=1, timeout=0.01))
    assert job.error_type == "timeout"


async def test_a_handler_that_returns_something_else_has_failed(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(_: JobContext) -> str:
        return 42  # type: ignore[return-value]

    job = await drained(store, worker, await enqueue(store))
    assert (job.status, job.error_type) == (JobStatus.FAILED, "invalid_result")


async def test_no_more_run_side_by_side_than_allowed(store: JobStore) -> None:
    worker = Worker(store, concurrency=3)
    running, most = 0, 0
    three_run = asyncio.Event()

    @worker.handles("task")
    async def handle(_: JobContext) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            three_run.set()
        await three_run.wait()
        running -= 1
        return ""

    for _ in range(9):
        await enqueue(store)
    await worker.run(drain=True)
    assert most == 3
    assert await store.jobs.count(status="completed") == 9


async def test_more_may_run_side_by_side_than_one_claim_returns(store: JobStore) -> None:
    worker = Worker(store, concurrency=20_000)
    worker.handles("task")(lambda job: job.prompt)
    job = await enqueue(store)
    await worker.run(drain=True)
    assert (await store.jobs.get(job.id)).response == "p"


async def test_only_the_task_types_that_have_a_handler_are_claimed(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("mine")
    async def handle(_: JobContext) -> str:
        return ""

    other = await enqueue(store, "other")
    await enqueue(store, "mine")
    await worker.run(drain=True)
    assert (await store.jobs.get(other.id)).status is JobStatus.IDLE


async def test_an_idle_worker_wakes_for_a_new_job_and_stops_when_told(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        return job.prompt

    running = asyncio.ensure_future(worker.run())
    job = await enqueue(store)
    assert (await store.jobs.wait(job.id)).response == "p"
    worker.stop()
    worker.stop()
    await running


async def test_stopping_before_running_is_fine(store: JobStore) -> None:
    worker = Worker(store)
    worker.handles("task")(lambda job: job.prompt)
    worker.stop()
    await worker.run()


async def test_stopping_lets_running_jobs_end_within_the_grace(store: JobStore) -> None:
    worker = Worker(store)
    begun, may_end = asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def handle(_: JobContext) -> str:
        begun.set()
        await may_end.wait()
        return "done"

    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run(grace=60))
    await begun.wait()
    worker.stop()
    await enqueue(store)
    may_end.set()
    await running
    assert (await store.jobs.get(job.id)).response == "done"
    assert await store.jobs.count(status="idle") == 1


@pytest.mark.parametrize("how", ["no grace", "at once", "cancelled"])
async def test_what_has_not_ended_is_released_and_its_attempt_does_not_count(store: JobStore, how: str) -> None:
    worker = Worker(store)
    begun = asyncio.Event()

    @worker.handles("task")
    async def handle(job: JobContext) -> None:
        await job.write("so far")
        begun.set()
        await asyncio.Event().wait()

    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run(grace=0 if how == "no grace" else 3600))
    await begun.wait()
    if how == "cancelled":
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
    else:
        worker.stop()
        if how == "at once":
            worker.stop(at_once=True)
        await running
    job = await store.jobs.get(job.id)
    assert (job.status, job.attempts_used) == (JobStatus.IDLE, 0)
    assert await store.jobs.read_response(job.id) == "so far"


async def test_cancelling_a_worker_right_after_its_claim_loses_no_job(store: JobStore) -> None:
    for turns in range(40):
        worker = Worker(store)
        worker.handles("task")(lambda job: job.prompt)
        job = await enqueue(store)
        running = asyncio.ensure_future(worker.run())
        while store.stats().writer.waiting_operations == 0 and not running.done():
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 2 else 0.0002)
        running.cancel()
        await asyncio.wait([running])
        await store.execute("SELECT 1")  # behind what a cancelled claim gives back
        assert (await store.jobs.get(job.id)).status in {JobStatus.IDLE, JobStatus.COMPLETED}


async def test_an_answer_that_the_disk_has_no_room_for_is_put_off(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jobstore.workers.attempt.RETRY_SECONDS", 0.0)
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> None:
        await job.write("so far")
        descriptor = job.answer._opening.result()._file._descriptor  # type: ignore[union-attr]
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)

    job = await drained(store, worker, await enqueue(store, max_attempts=1))
    assert (job.status, job.error_type) == (JobStatus.FAILED, "DiskFull")
    assert "could not be recorded (DiskFull)" in caplog.text


async def test_a_handler_that_lets_a_foreign_cancellation_through_fails_alone(store: JobStore) -> None:
    worker = Worker(store)

    @worker.handles("leaks")
    async def leak(_: JobContext) -> None:
        other = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        return job.prompt

    leaking, good = await enqueue(store, "leaks", max_attempts=1), await enqueue(store)
    await worker.run(drain=True)
    failed = await store.jobs.get(leaking.id)
    assert (failed.status, failed.error_type) == (JobStatus.FAILED, "CancelledError")
    assert (await store.jobs.get(good.id)).response == "p"


async def test_draining_goes_on_when_the_database_could_not_be_asked(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.workers.worker.RETRY_SECONDS", 0.0)
    refusals = iter([DatabaseBusy(30.0), DiskFull("no room"), ConnectionLost("the server is away")])

    class Unlucky(Worker):
        async def _ask(self, limit: int) -> list[Claim]:
            for refusal in refusals:
                raise refusal
            return await super()._ask(limit)

    worker = Unlucky(store)
    worker.handles("task")(lambda job: job.prompt)
    job = await enqueue(store)
    assert (await drained(store, worker, job)).status is JobStatus.COMPLETED


async def test_ending_a_job_in_time_is_never_told_as_a_loss(store: JobStore) -> None:
    told: list[str] = []
    leases = store._open.backend.leases  # type: ignore[union-attr]
    await enqueue(store)
    [long] = await store.jobs.claim("w")
    with store.jobs.lease_kept(long, lease=0.006):  # so that the thread beats all the time
        for _ in range(30):
            await enqueue(store)
            [claim] = await store.jobs.claim("w")
            with store.jobs.lease_kept(claim, lease=0.006, lost=lambda: told.append("lost")):
                await store.jobs.complete(claim, "done")
                seen = leases.beats
                while leases.beats < seen + 2:
                    await asyncio.sleep(0)
    assert told == []


async def test_a_handler_is_cancelled_when_its_job_is_asked_to_end(store: JobStore) -> None:
    worker = Worker(store, lease=0.05)
    begun = asyncio.Event()

    @worker.handles("task")
    async def handle(job: JobContext) -> None:
        await job.write("so far")
        begun.set()
        await asyncio.Event().wait()

    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run())
    await begun.wait()
    await store.jobs.cancel(job.id)
    ended = await store.jobs.wait(job.id)
    assert ended.status is JobStatus.CANCELED
    assert await store.jobs.read_response(job.id) == "so far"
    worker.stop()
    await running


async def test_a_handler_whose_lease_is_lost_is_cancelled_and_its_result_dropped(
    store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(store, lease=0.3)
    begun, cancelled = asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def handle(_: JobContext) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return "too late"

    job = await enqueue(store)
    running = asyncio.ensure_future(worker.run())
    await begun.wait()

    def claim_a_minute_later(now: int) -> Operation[Claimed]:
        return leasing.claim(now + 60_000, "another", 1, 3_600_000, None, None)

    [claim] = (await store.run(claim_a_minute_later)).claims  # as if this machine had slept
    await cancelled.wait()
    await store.jobs.complete(claim, "the other's")
    worker.stop()
    with caplog.at_level(logging.WARNING):
        await running
    assert "lease lost" in caplog.text
    assert (await store.jobs.get(job.id)).response == "the other's"


async def test_logs_name_ids_and_never_texts(store: JobStore, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        if job.prompt == "secret prompt 1":
            raise ValueError("secret " + job.prompt)
        return "secret answer"

    with caplog.at_level(logging.DEBUG):
        await enqueue(store, prompt="secret prompt 1", max_attempts=1)
        job = await enqueue(store, prompt="secret prompt 2")
        await worker.run(drain=True)
    assert job.id in caplog.text
    assert "secret" not in caplog.text


async def test_a_worker_without_a_handler_or_with_two_for_one_type_is_refused(store: JobStore) -> None:
    worker = Worker(store)
    with pytest.raises(InvalidArgument):
        await worker.run()
    worker.handles("task")(lambda job: job.prompt)
    with pytest.raises(InvalidArgument, match="has a handler already"):
        worker.handles("task")
    with pytest.raises(InvalidArgument):
        Worker(store, concurrency=0)
    with pytest.raises(InvalidArgument):
        Worker(store, lease=0)


def test_outcomes_are_no_errors_of_the_store() -> None:
    assert {Retry, Fail, Snooze, Cancel} == set(Outcome.__subclasses__())
