"""Helpers for users' own tests: handlers run inline, workers drained through all retries, what was enqueued found."""

from __future__ import annotations

import pytest

from jobstore import JobStatus, JobStore
from jobstore.testing import FakeClock, assert_enqueued, drain, run_handler
from jobstore.workers import Fail, JobContext, Snooze, Worker


async def greet(job: JobContext) -> str:
    return f"Hello, {job.prompt}!"


async def test_a_handler_runs_inline_and_its_job_tells_how_it_ended(store: JobStore) -> None:
    await store.jobs.enqueue("of another test", task_type="test", api_type="test")
    job = await run_handler(store, greet, "world", metadata={"language": "en"})
    assert (job.status, job.response, job.metadata) == (JobStatus.COMPLETED, "Hello, world!", {"language": "en"})
    assert await store.jobs.count(status="idle") == 1


async def test_a_handler_that_fails_inline_raises_nothing(store: JobStore) -> None:
    async def refuse(_job: JobContext) -> str:
        raise Fail("never")

    job = await run_handler(store, refuse)
    assert (job.status, job.error_type) == (JobStatus.FAILED, "failed")


def shout(job: JobContext) -> str:
    return job.prompt.upper()


async def test_a_handler_that_is_not_async_runs_inline_as_well(store: JobStore) -> None:
    job = await run_handler(store, shout, "loud", task_type="shout")
    assert (job.task_type, job.response) == ("shout", "LOUD")


async def test_draining_with_a_clock_takes_no_time_for_retries_and_schedules(store: JobStore, clock: FakeClock) -> None:
    tries: list[int] = []
    worker = Worker(store)

    @worker.handles("task")
    async def third_time_lucky(job: JobContext) -> str:
        tries.append(job.attempt)
        if job.attempt == 1:
            raise Snooze(3600)
        if job.attempt == 2:
            raise ConnectionError
        return "done"

    began = clock.now
    job = await store.jobs.enqueue("p", task_type="task", api_type="api")
    await drain(worker, clock)
    assert tries == [1, 2, 3]
    assert (await store.jobs.get(job.id)).response == "done"
    assert clock.now >= began + 3_600_000


async def test_draining_goes_no_further_than_it_may(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store)

    @worker.handles("task")
    async def later(_job: JobContext) -> str:
        raise Snooze(600)

    job = await store.jobs.enqueue("p", task_type="task", api_type="api")
    began = clock.now
    await drain(worker, clock, at_most=3600)
    assert clock.now == began + 3_600_000
    assert (await store.jobs.get(job.id)).status is JobStatus.SCHEDULED
    await drain(worker)
    assert clock.now == began + 3_600_000


async def test_a_lease_of_a_worker_that_is_gone_ends_while_draining(store: JobStore, clock: FakeClock) -> None:
    job = await store.jobs.enqueue("p", task_type="task", api_type="api")
    await store.jobs.claim("gone")
    worker = Worker(store)
    worker.handles("task")(greet)
    await drain(worker, clock)
    assert (await store.jobs.get(job.id)).response == "Hello, p!"


async def test_what_was_enqueued_is_found_by_any_of_its_features(store: JobStore) -> None:
    large = "large " * 20_000
    small = await store.jobs.enqueue("small", task_type="one", api_type="api", metadata={"a": 1, "b": [2]})
    spilled = await store.jobs.enqueue(large, task_type="two", api_type="api")
    assert await assert_enqueued(store) == spilled
    assert (await assert_enqueued(store, prompt=large)).id == spilled.id
    assert await assert_enqueued(store, metadata={"b": [2]}) == small
    assert (await assert_enqueued(store, task_type="one", api_type="api")).id == small.id


async def test_what_was_not_enqueued_is_told_with_what_was_but_no_text(store: JobStore) -> None:
    with pytest.raises(AssertionError, match="those that do: none"):
        await assert_enqueued(store)
    await store.jobs.enqueue("a secret", task_type="one", api_type="api")
    await store.jobs.claim("worker")  # it waits no more
    for _ in range(2):
        await store.jobs.enqueue("a secret", task_type="two", api_type="api")
    for wrong in ({"task_type": "one"}, {"prompt": "another"}, {"metadata": {"a": None}}):
        with pytest.raises(AssertionError, match="those that do: 2 of two/api") as refused:
            await assert_enqueued(store, **wrong)  # type: ignore[arg-type]
        assert "secret" not in str(refused.value)
