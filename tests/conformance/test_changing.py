"""Changing jobs from outside: a waiting one field by field, many at once by the filters of a list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobstore import (
    InvalidArgument,
    InvalidJob,
    InvalidTransition,
    Job,
    JobNotFound,
    JobStatus,
    JobStore,
    LeaseLost,
    NewJob,
)
from jobstore.operations import bulk
from jobstore.testing import FakeClock

from .support import enqueue, eventually, everything, facts, start

BulkChange = Callable[..., Awaitable[int]]


def soon(clock: FakeClock, seconds: float = 60) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


def changed_fields(before: Job, after: Job) -> dict[str, Any]:
    old, new = facts(before), facts(after)
    return {name: value for name, value in new.items() if old[name] != value and name != "updated_at"}


# One that waits


async def test_each_field_is_changed_alone(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, metadata={"kept": 1, "replaced": 2})
    clock.advance(1)
    for given, expected in (
        ({"priority": -7}, {"priority": -7}),
        ({"max_attempts": 9}, {"max_attempts": 9}),
        ({"expires_at": soon(clock, 90)}, {"expires_at": soon(clock, 90)}),
        ({"metadata": {"replaced": 3, "new": [4]}}, {"metadata": {"kept": 1, "replaced": 3, "new": [4]}}),
        ({"run_at": soon(clock, 60)}, {"run_at": soon(clock, 60), "status": JobStatus.SCHEDULED}),
        ({"run_at": None}, {"run_at": soon(clock, 0), "status": JobStatus.IDLE}),
        ({"expires_at": None}, {"expires_at": None}),
        ({}, {}),
    ):
        before = await store.jobs.get(job.id)
        after = await store.jobs.update(job.id, **given)  # type: ignore[arg-type]
        assert changed_fields(before, after) == expected
        assert after.updated_at == soon(clock, 0)
        assert facts(after) == facts(await store.jobs.get(job.id))


async def test_all_fields_are_changed_in_one(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store)
    changes: dict[str, Any] = {
        "priority": 3,
        "run_at": soon(clock, 60),
        "metadata": {"a": None},
        "max_attempts": 1,
        "expires_at": soon(clock, 61),
    }
    after = await store.jobs.update(job.id, **changes)
    assert {name: getattr(after, name) for name in changes} == changes


async def test_a_higher_priority_is_claimed_first(store: JobStore) -> None:
    await enqueue(store)
    second = await enqueue(store)
    await store.jobs.update(second.id, priority=1)
    [claim] = await store.jobs.claim("w")
    assert claim.job_id == second.id


async def test_a_job_that_was_put_off_is_claimed_in_its_time(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store)
    await store.jobs.update(job.id, run_at=soon(clock, 60))
    assert await store.jobs.claim("w") == []
    clock.advance(60)
    assert len(await store.jobs.claim("w")) == 1


async def test_a_time_that_has_passed_is_at_once(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, run_at=soon(clock, 3600))
    after = await store.jobs.update(job.id, run_at=soon(clock, -3600))
    assert (after.status, after.run_at) == (JobStatus.IDLE, soon(clock, -3600))
    assert len(await store.jobs.claim("w")) == 1


async def test_an_expiry_that_has_passed_cancels_the_job(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store)
    after = await store.jobs.update(job.id, expires_at=soon(clock, -1))
    assert (after.status, after.error_type, after.finished_at) == (JobStatus.CANCELED, "expired", soon(clock, 0))
    assert await store.jobs.claim("w") == []


@pytest.mark.parametrize("status", ["running", "completed", "failed", "canceled"])
async def test_what_does_not_wait_is_refused_and_unchanged(store: JobStore, status: str) -> None:
    claim = await start(store)
    if status == "completed":
        await store.jobs.complete(claim, "done")
    elif status == "failed":
        await store.jobs.fail(claim, "no")
    elif status == "canceled":
        await store.jobs.cancel(claim.job_id)
        await store.jobs.release(claim)
    before = await everything(store)
    for changes in ({"priority": 1}, {"metadata": {"a": 1}}, {"run_at": None}, {"max_attempts": 1}, {}):
        with pytest.raises(InvalidTransition, match=status):
            await store.jobs.update(claim.job_id, **changes)  # type: ignore[arg-type]
    assert await everything(store) == before


async def test_a_job_whose_lease_has_ended_waits_again_and_can_be_changed(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, lease=10)
    clock.advance(10)
    assert (await store.jobs.update(claim.job_id, priority=5)).status is JobStatus.IDLE


async def test_fewer_attempts_than_were_used_are_refused(store: JobStore) -> None:
    claim = await start(store, max_attempts=3)
    await store.jobs.fail(claim, "no", retry_in=0)
    [claim] = await store.jobs.claim("w")
    await store.jobs.fail(claim, "no", retry_in=0)
    before = await everything(store)
    for attempts in (1, 2):
        with pytest.raises(InvalidJob, match="max_attempts"):
            await store.jobs.update(claim.job_id, max_attempts=attempts, priority=9)
    assert await everything(store) == before
    assert (await store.jobs.update(claim.job_id, max_attempts=3)).max_attempts == 3


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"priority": 2**31}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"priority": True}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"run_at": datetime(2100, 1, 1)}, "run_at"),  # noqa: DTZ001
        ({"run_at": 5}, "run_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"run_at": datetime(2101, 1, 1, tzinfo=UTC), "expires_at": datetime(2100, 1, 1, tzinfo=UTC)}, "expires_at"),
    ],
)
async def test_a_change_that_cannot_be_meant_is_refused_by_its_name(
    store: JobStore, changes: dict[str, Any], field: str
) -> None:
    job = await enqueue(store)
    before = await everything(store)
    with pytest.raises(InvalidArgument, match=field):
        await store.jobs.update(job.id, **changes)
    assert await everything(store) == before


async def test_a_job_that_is_not_there_is_told(store: JobStore) -> None:
    for changes in ({"priority": 1}, {"metadata": {"a": 1}}, {"max_attempts": 1}):
        with pytest.raises(JobNotFound):
            await store.jobs.update("none", **changes)  # type: ignore[arg-type]


async def test_changes_of_metadata_at_the_same_time_all_arrive(store: JobStore) -> None:
    job = await enqueue(store)
    await asyncio.gather(*(store.jobs.update(job.id, metadata={str(n): n}) for n in range(30)))
    assert (await store.jobs.get(job.id)).metadata == {str(n): n for n in range(30)}


async def test_changing_against_claiming_settles_on_one(store: JobStore) -> None:
    jobs = [await enqueue(store) for _ in range(20)]
    updates = [store.jobs.update(job.id, priority=1) for job in jobs]
    *outcomes, claims = await asyncio.gather(*updates, store.jobs.claim("w", limit=20), return_exceptions=True)
    assert isinstance(claims, list)
    assert len(claims) == 20
    for job, outcome in zip(jobs, outcomes, strict=True):
        changed = isinstance(outcome, Job)
        assert changed or isinstance(outcome, InvalidTransition)
        assert (await store.jobs.get(job.id)).priority == (1 if changed else 0)


async def test_a_change_wakes_who_sleeps(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, run_at=soon(clock, 3600))

    async def claim_patiently() -> int:
        token = await store.jobs.wake()
        while not (claims := await store.jobs.claim("w")):
            token = await store.jobs.wake(since=token)
        return len(claims)

    claiming = asyncio.ensure_future(claim_patiently())
    await eventually(lambda: store.stats().wake.waiting > 0)
    await store.jobs.update(job.id, run_at=None)
    async with asyncio.timeout(60):
        assert await claiming == 1


# Many by a filter


async def populate(store: JobStore, clock: FakeClock) -> dict[str, str]:
    """Make a job of each status and kind; return their ids by what they are."""
    session = await store.sessions.create(name="s", project_directory="/src")
    ids: dict[str, str] = {}
    for outcome in ("completed", "failed", "canceled", "running"):
        claim = await start(store, max_attempts=1, lease=3600, task_type="worked")
        ids[outcome] = claim.job_id
        if outcome == "completed":
            await store.jobs.complete(claim, "answer")
        elif outcome == "failed":
            await store.jobs.fail(claim, "no")
        elif outcome == "canceled":
            await store.jobs.cancel(claim.job_id)
            await store.jobs.release(claim)
    clock.advance(10)
    ids["idle"] = (await enqueue(store)).id
    ids["scheduled"] = (await enqueue(store, run_at=soon(clock, 60))).id
    ids["session"] = (await enqueue(store, session_id=session.id)).id
    ids["gemini"] = (await enqueue(store, api_type="gemini")).id
    ids["hidden"] = (await enqueue(store)).id
    await store.jobs.clear([ids["hidden"]])
    clock.advance(10)
    return ids


async def changed_by(store: JobStore, ids: dict[str, str], change: BulkChange, **filters: Any) -> set[str]:  # noqa: ANN401
    """Return which jobs a change changed, which must be as many as it says."""
    before = {name: await store.jobs.get(job_id) for name, job_id in ids.items()}
    count = await change(**filters)
    after = {name: await store.jobs.get(job_id) for name, job_id in ids.items()}
    changed = {name for name in ids if before[name] != after[name]}
    assert len(changed) == count
    return changed


WAITING = {"idle", "scheduled", "session", "gemini", "hidden"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"everything": True}, {*WAITING, "running"}),
        ({"status": "idle"}, WAITING - {"scheduled"}),
        ({"status": ["scheduled", "running"]}, {"scheduled", "running"}),
        ({"task_type": "worked"}, {"running"}),
        ({"task_type": "greeting"}, WAITING),
        ({"api_type": "gemini"}, {"gemini"}),
        ({"cleared": True}, {"hidden"}),
        ({"cleared": False}, {*WAITING, "running"} - {"hidden"}),
        ({"session_id": "none"}, set()),
    ],
)
async def test_all_unfinished_that_a_filter_finds_are_canceled(
    store: JobStore, clock: FakeClock, filters: dict[str, Any], expected: set[str]
) -> None:
    ids = await populate(store, clock)
    assert await changed_by(store, ids, store.jobs.cancel_all, **filters) == expected
    for name in expected:
        job = await store.jobs.get(ids[name])
        assert job.status is (JobStatus.RUNNING if name == "running" else JobStatus.CANCELED)
        assert job.cancel_requested_at == soon(clock, 0)
    assert await changed_by(store, ids, store.jobs.cancel_all, **filters) == set()


async def test_filters_by_time_and_session_find_what_a_list_finds(store: JobStore, clock: FakeClock) -> None:
    ids = await populate(store, clock)
    session = (await store.jobs.get(ids["session"])).session_id
    assert await changed_by(store, ids, store.jobs.cancel_all, session_id=session) == {"session"}
    early = {"running"}
    assert await changed_by(store, ids, store.jobs.cancel_all, created_before=soon(clock, -10)) == early
    late = WAITING - {"session"}
    assert await changed_by(store, ids, store.jobs.cancel_all, created_after=soon(clock, -10)) == late


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"everything": True}, {"failed"}),
        ({"task_type": "worked"}, {"failed"}),
        ({"status": ["failed", "canceled", "completed"]}, {"failed", "canceled", "completed"}),
        ({"status": "completed", "task_type": "worked"}, {"completed"}),
        ({"task_type": "greeting"}, set()),
    ],
)
async def test_all_failed_ones_that_a_filter_finds_are_retried(
    store: JobStore, clock: FakeClock, filters: dict[str, Any], expected: set[str]
) -> None:
    ids = await populate(store, clock)
    assert await changed_by(store, ids, store.jobs.retry_all, **filters) == expected
    for name in expected:
        job = await store.jobs.get(ids[name])
        assert (job.status, job.attempts_used, job.run_at) == (JobStatus.IDLE, 0, soon(clock, 0))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"everything": True}, {*WAITING, "running", "completed", "failed", "canceled"} - {"hidden"}),
        ({"status": ["completed", "canceled"]}, {"completed", "canceled"}),
        ({"task_type": "worked"}, {"running", "completed", "failed", "canceled"}),
    ],
)
async def test_all_that_a_filter_finds_are_hidden(
    store: JobStore, clock: FakeClock, filters: dict[str, Any], expected: set[str]
) -> None:
    ids = await populate(store, clock)
    assert await changed_by(store, ids, store.jobs.clear_all, **filters) == expected
    assert {(await store.jobs.get(ids[name])).cleared for name in expected} == {True}
    assert await store.jobs.clear_all(**filters) == 0


async def test_more_than_a_round_are_all_changed(store: JobStore) -> None:
    count = 2 * bulk.ROUND_ROWS + 7
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(count))
    kept = await enqueue(store, task_type="other")
    assert await store.jobs.cancel_all(task_type="t") == count
    assert await store.jobs.retry_all(status="canceled", task_type="t") == count
    assert await store.jobs.clear_all(task_type="t") == count
    assert await store.jobs.count(status="idle", task_type="t", cleared=True) == count
    assert (await store.jobs.get(kept.id)) == kept


async def test_each_job_is_retried_once_also_while_they_fail_again(store: JobStore) -> None:
    count = bulk.ROUND_ROWS + 50
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a", max_attempts=1) for _ in range(count))

    async def fail_all() -> None:
        while claims := await store.jobs.claim("w", limit=100):
            await asyncio.gather(*(store.jobs.fail(claim, "no") for claim in claims))

    await fail_all()
    retried, _ = await asyncio.gather(store.jobs.retry_all(task_type="t"), fail_all())
    assert retried == count


async def test_a_lost_worker_s_job_is_canceled_at_once_among_many(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, lease=10)
    clock.advance(10)
    assert await store.jobs.cancel_all(everything=True) == 1
    assert (await store.jobs.get(claim.job_id)).status is JobStatus.CANCELED


@pytest.mark.parametrize("name", ["cancel_all", "retry_all", "clear_all"])
@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({}, "everything"),
        ({"everything": True, "task_type": "t"}, "everything"),
        ({"status": "lost"}, "status"),
        ({"created_after": datetime(2030, 1, 1)}, "created_after"),  # noqa: DTZ001
    ],
)
async def test_a_change_of_many_says_which_are_meant(
    store: JobStore, name: str, filters: dict[str, Any], field: str
) -> None:
    await enqueue(store)
    before = await everything(store)
    with pytest.raises(InvalidArgument, match=field):
        await getattr(store.jobs, name)(**filters)
    assert await everything(store) == before


async def test_a_status_that_cannot_be_changed_so_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidArgument, match="canceled: running, idle, scheduled"):
        await store.jobs.cancel_all(status=["idle", "failed"])
    with pytest.raises(InvalidArgument, match="retried"):
        await store.jobs.retry_all(status="idle")


async def test_rounds_that_were_done_before_the_caller_was_cancelled_stay(store: JobStore) -> None:
    count = 3 * bulk.ROUND_ROWS
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(count))
    canceling = asyncio.ensure_future(store.jobs.cancel_all(task_type="t"))
    await eventually(lambda: some_are_canceled(store))
    canceling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await canceling
    rest = await store.jobs.cancel_all(task_type="t")
    assert 0 < rest < count
    assert rest % bulk.ROUND_ROWS == 0
    assert await store.jobs.count(status="canceled") == count


async def some_are_canceled(store: JobStore) -> bool:
    return await store.jobs.count(status="canceled") > 0


async def test_changing_many_does_not_hold_up_others_who_work_on_the_same(database: Path | str) -> None:
    """In one transaction with others that change the same rows, not in one that has to be repeated for them."""
    async with JobStore(database, migrate=True) as working, JobStore(database) as changing:
        await working.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(300))

        async def work() -> None:
            while claims := await working.jobs.claim("w", task_types=["t"]):
                with suppress(LeaseLost):
                    await working.jobs.complete(claims[0], "done")

        workers = [asyncio.ensure_future(work()) for _ in range(10)]
        async with asyncio.timeout(60):
            canceled = await changing.jobs.cancel_all(task_type="t", status="idle")
            await asyncio.gather(*workers)
        assert await changing.jobs.count(status="canceled") == canceled
        assert await changing.jobs.count(status="completed") == 300 - canceled


async def test_a_job_that_was_claimed_meanwhile_is_not_canceled_as_idle(store: JobStore) -> None:
    job = await enqueue(store)
    claims, canceled = await asyncio.gather(store.jobs.claim("w"), store.jobs.cancel_all(status="idle"))
    after = await store.jobs.get(job.id)
    assert (len(claims), canceled) in {(1, 0), (0, 1)}
    assert after.status is (JobStatus.RUNNING if claims else JobStatus.CANCELED)
    assert (after.cancel_requested_at is None) == bool(claims)
