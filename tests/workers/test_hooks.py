"""Functions of the user's that are told of attempts: when, with what, and that they harm nothing."""

from __future__ import annotations

import pytest

from jobstore import JobStatus, JobStore
from jobstore.testing import FakeClock
from jobstore.workers import AttemptEvent, Fail, JobContext, Snooze, Worker, constant

Told = list[tuple[str, AttemptEvent]]


def told_by(worker: Worker) -> Told:
    """Note whatever a worker tells, by a function and by one that is async."""
    told: Told = []

    @worker.on_claim
    def claim(event: AttemptEvent) -> None:
        told.append(("claim", event))

    @worker.on_complete
    async def complete(event: AttemptEvent) -> None:
        told.append(("complete", event))

    worker.on_failure(lambda event: told.append(("failure", event)))
    worker.on_lease_lost(lambda event: told.append(("lease_lost", event)))
    return told


async def enqueue(store: JobStore) -> str:
    return (await store.jobs.enqueue("p", task_type="task", api_type="api")).id


async def test_a_claim_and_a_completion_are_told_with_their_times(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store)
    told = told_by(worker)

    @worker.handles("task")
    async def handle(_job: JobContext) -> str:
        return "answer"

    job_id = await enqueue(store)
    clock.advance(7)
    await worker.run(drain=True)
    (first, claim), (second, complete) = told
    assert (first, second) == ("claim", "complete")
    assert (claim.worker_id, claim.job.id, claim.attempt, claim.waited, claim.ran) == (worker.id, job_id, 1, 7.0, 0.0)
    assert (complete.job.status, complete.waited, complete.error_type) == (JobStatus.COMPLETED, 7.0, None)
    assert complete.ran > 0


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), JobStatus.SCHEDULED), (Fail("x", error_type="quota"), JobStatus.FAILED)]
)
async def test_a_failure_is_told_whether_it_is_final_or_not(
    store: JobStore, error: Exception, status: JobStatus
) -> None:
    worker = Worker(store, retry=constant(60))
    told = told_by(worker)

    @worker.handles("task")
    async def handle(_job: JobContext) -> str:
        raise error

    await enqueue(store)
    await worker.run(drain=True)
    assert [moment for moment, _ in told] == ["claim", "failure"]
    assert told[1][1].job.status is status
    assert told[1][1].error_type == getattr(error, "error_type", "ValueError")


async def test_what_is_put_off_is_no_failure(store: JobStore) -> None:
    worker = Worker(store)
    told = told_by(worker)

    @worker.handles("task")
    async def handle(_job: JobContext) -> str:
        raise Snooze(60)

    await enqueue(store)
    await worker.run(drain=True)
    assert [moment for moment, _ in told] == ["claim"]


async def test_a_lost_lease_is_told(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store, lease=30, concurrency=1)  # or it might be the other itself
    told = told_by(worker)

    @worker.handles("task")
    async def handle(job: JobContext) -> str:
        clock.advance(31)
        [other] = await store.jobs.claim("another")
        assert other.attempt == job.attempt + 1
        return "too late"

    await enqueue(store)
    await worker.run(drain=True)
    assert [moment for moment, _ in told] == ["claim", "lease_lost"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
async def test_a_hook_that_raises_harms_nothing(
    store: JobStore, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    worker = Worker(store)

    @worker.on_claim
    @worker.on_complete
    def broken(event: AttemptEvent) -> None:
        raise kind(event.job.prompt)

    told = told_by(worker)

    @worker.handles("task")
    async def handle(_job: JobContext) -> str:
        return "answer"

    job_id = (await store.jobs.enqueue("a secret", task_type="task", api_type="api")).id
    await worker.run(drain=True)
    assert (await store.jobs.get(job_id)).response == "answer"
    assert [moment for moment, _ in told] == ["claim", "complete"]
    assert caplog.text.count(f"the hook broken failed: {kind.__name__}") == 2
    assert "secret" not in caplog.text
