"""Expiry: what waits at its `expires_at` is canceled by whoever looks next, and never claimed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from jobstore import InvalidJob, InvalidTransition, Job, JobStatus, JobStore, LeaseLost, NewJob
from jobstore.operations import jobs, leasing
from jobstore.testing import FakeClock

from .support import enqueue, start


def soon(clock: FakeClock, seconds: float = 60) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


def assert_expired(job: Job) -> None:
    assert (job.status, job.error_type) == (JobStatus.CANCELED, "expired")
    assert job.error_message == "it still waited at its expires_at"
    assert job.finished_at is not None
    assert job.cancel_requested_at is None


async def test_a_job_that_waits_at_its_expiry_is_canceled_by_the_next_claim(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, expires_at=soon(clock, 60))
    assert job.expires_at == soon(clock, 60)
    other = await enqueue(store)
    clock.advance(60)
    [claim] = await store.jobs.claim("w", limit=10)
    assert claim.job_id == other.id
    assert_expired(await store.jobs.get(job.id))
    assert (await store.jobs.get(job.id)).finished_at == soon(clock, 0)


async def test_until_then_it_is_claimed_and_may_take_as_long_as_it_likes(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, expires_at=soon(clock, 60), lease=3600)
    clock.advance(600)
    assert await store.jobs.claim("w") == []
    assert (await store.jobs.complete(claim, "late, but begun in time")).status is JobStatus.COMPLETED


async def test_a_millisecond_before_is_in_time(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store, expires_at=soon(clock, 60))
    clock.advance(59.999)
    assert len(await store.jobs.claim("w")) == 1


@pytest.mark.parametrize("give_back", ["fail", "snooze", "release", "lease"])
async def test_no_other_attempt_begins_after_it_either(store: JobStore, clock: FakeClock, give_back: str) -> None:
    claim = await start(store, expires_at=soon(clock, 60), lease=70)
    clock.advance(61)
    if give_back == "fail":
        await store.jobs.fail(claim, "no", retry_in=0, error_type="timeout")
    elif give_back == "snooze":
        await store.jobs.snooze(claim, 100)
    elif give_back == "release":
        await store.jobs.release(claim)
    else:
        clock.advance(10)
    assert await store.jobs.claim("w") == []
    assert_expired(await store.jobs.get(claim.job_id))


async def test_a_scheduled_job_expires_before_its_time(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, expires_at=soon(clock, 60))
    await store.jobs.fail(claim, "no", retry_in=600)
    clock.advance(60)
    assert await store.jobs.claim("w") == []
    assert_expired(await store.jobs.get(claim.job_id))


async def test_jobs_of_paused_lanes_expire_as_well(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, expires_at=soon(clock, 60))
    await store.lanes.pause()
    clock.advance(60)
    assert await store.jobs.claim("w") == []
    assert_expired(await store.jobs.get(job.id))


async def test_it_is_canceled_by_a_claim_of_other_lanes_and_by_a_rescue(store: JobStore, clock: FakeClock) -> None:
    first = await enqueue(store, expires_at=soon(clock, 60))
    second = await enqueue(store, expires_at=soon(clock, 120))
    clock.advance(60)
    assert await store.jobs.claim("w", task_types=["other"]) == []
    assert_expired(await store.jobs.get(first.id))
    clock.advance(60)
    assert await store.run(leasing.rescue_due) == 1
    assert_expired(await store.jobs.get(second.id))


async def test_more_of_them_than_one_claim_deals_with_hold_up_nothing(store: JobStore, clock: FakeClock) -> None:
    count = 2 * leasing.MAX_DUE + 10
    end = soon(clock, 60)
    await store.jobs.enqueue_many(
        NewJob(prompt="p", task_type="t", api_type="a", priority=9, expires_at=end) for _ in range(count)
    )
    job = await enqueue(store)
    clock.advance(60)
    [claim] = await store.jobs.claim("w")
    assert claim.job_id == job.id
    assert await store.jobs.count(status="canceled") == count


async def test_one_operation_cancels_no_more_than_its_share(store: JobStore, clock: FakeClock) -> None:
    end = soon(clock, 60)
    await store.jobs.enqueue_many(
        NewJob(prompt="p", task_type="t", api_type="a", expires_at=end) for _ in range(leasing.MAX_DUE + 5)
    )
    clock.advance(60)
    claimed = await store.run(leasing.claim, "w", 1, 1000, None, None)
    assert (claimed.claims, claimed.more_due) == ([], True)
    assert await store.jobs.count(status="canceled") == leasing.MAX_DUE


async def test_one_that_has_passed_is_recorded_and_canceled_at_once(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, expires_at=soon(clock, 0), idempotency_key="key")
    assert_expired(job)
    assert await store.jobs.get(job.id) == job
    assert (await enqueue(store, expires_at=soon(clock, 60), idempotency_key="key")).id == job.id
    assert await store.jobs.claim("w") == []
    new = [NewJob(prompt="p", task_type="t", api_type="a", expires_at=soon(clock, n)) for n in (-1, 1)]
    assert [one.status for one in await store.jobs.enqueue_many(new)] == [JobStatus.CANCELED, JobStatus.IDLE]


@pytest.mark.parametrize(
    "wrong",
    [
        {"expires_at": datetime(2100, 1, 1)},  # noqa: DTZ001
        {"expires_at": "2100-01-01"},
        {"expires_at": datetime(2100, 1, 1, tzinfo=UTC), "run_at": datetime(2100, 1, 1, tzinfo=UTC)},
        {"expires_at": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
    ],
)
async def test_one_that_cannot_be_meant_is_refused(store: JobStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as caught:
        await enqueue(store, **wrong)
    assert caught.value.field == "expires_at"
    assert await store.jobs.count() == 0


async def test_a_recorded_call_cannot_expire(store: JobStore, clock: FakeClock) -> None:
    with pytest.raises(TypeError):
        store.jobs.record("p", task_type="t", api_type="a", expires_at=soon(clock))  # type: ignore[call-arg]


async def test_retrying_drops_an_expiry_that_has_passed_and_keeps_one_ahead(store: JobStore, clock: FakeClock) -> None:
    passed = await enqueue(store, expires_at=soon(clock, 60))
    ahead = await enqueue(store, expires_at=soon(clock, 600))
    await store.jobs.cancel(ahead.id)
    clock.advance(60)
    assert await store.jobs.claim("w") == []
    assert (await store.jobs.retry(passed.id)).expires_at is None
    assert (await store.jobs.retry(ahead.id)).expires_at == ahead.expires_at
    assert len(await store.jobs.claim("w", limit=5)) == 2


async def test_one_that_has_expired_cannot_be_canceled_any_more(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, expires_at=soon(clock, 60))
    clock.advance(60)
    with pytest.raises(InvalidTransition) as caught:
        await store.jobs.cancel(job.id)
    assert caught.value.from_status == "canceled"


async def test_a_late_answer_counts_although_the_job_expired_meanwhile(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, expires_at=soon(clock, 60), lease=5)
    clock.advance(61)
    assert await store.jobs.claim("w") == []
    assert_expired(await store.jobs.get(claim.job_id))
    done = await store.jobs.complete(claim, "it was paid for")
    assert (done.status, done.response, done.error_type) == (JobStatus.COMPLETED, "it was paid for", None)


async def test_a_late_answer_to_a_job_that_someone_canceled_does_not_count(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, lease=5)
    clock.advance(6)
    await store.jobs.cancel(claim.job_id)
    with pytest.raises(LeaseLost):
        await store.jobs.complete(claim, "too late")


async def test_what_sleeps_knows_when_the_next_job_expires(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store, expires_at=soon(clock, 60))
    await enqueue(store, run_at=soon(clock, 600), expires_at=soon(clock, 700))
    assert await store.jobs._backend.read(jobs.next_due) == clock() + 60_000
    await store.jobs.claim("w")
    clock.advance(-1)
    assert await store.jobs._backend.read(jobs.next_due) == clock() + 31_000


@pytest.mark.parametrize("reading", ["wait", "tail"])
async def test_whoever_waits_for_a_job_sees_it_expire_without_any_worker(
    database: Path | str, outputs: Path, reading: str
) -> None:
    async with JobStore(database, migrate=True, outputs=outputs) as store:
        job = await enqueue(store, expires_at=datetime.now(UTC) + timedelta(seconds=0.3))
        async with asyncio.timeout(60):
            if reading == "wait":
                assert_expired(await store.jobs.wait(job.id))
            else:
                assert [text async for text in store.jobs.tail(job.id)] == []
        assert_expired(await store.jobs.get(job.id))
