"""Making jobs: `enqueue`, `enqueue_many`, idempotency keys."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType

import pytest

from jobstore import Job, JobStatus, JobStore, NewJob, SessionNotFound
from jobstore.testing import FakeClock

from .support import SPILLED, enqueue, eventually, files, start


def now(clock: FakeClock) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC)


def new(prompt: str = "Say hello", **fields: object) -> NewJob:
    return NewJob(**{"prompt": prompt, "task_type": "greeting", "api_type": "claude", **fields})


async def test_an_enqueued_job_is_idle_and_is_what_get_returns(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, "Say hello")
    assert job.status is JobStatus.IDLE
    assert (job.attempt, job.attempts_used, job.max_attempts, job.priority) == (0, 0, 3, 0)
    assert job.created_at == job.updated_at == job.run_at == now(clock)
    assert job.started_at is job.finished_at is job.error_type is job.response is None
    assert job.metadata == {}
    assert job.prompt == "Say hello"
    assert await store.jobs.get(job.id) == job


async def test_every_field_is_kept(store: JobStore, clock: FakeClock) -> None:
    session = await store.sessions.create(name="demo", project_directory="/src/app")
    fields = {
        "model_used": "claude-opus-5-5",
        "session_id": session.id,
        "metadata": {"target": "plan", "nested": [1, 2.5, None, True, {"ключ": "😀\0"}]},
        "priority": -(2**31),
        "max_attempts": 7,
        "timeout": 12.5,
        "idempotency_key": "plan-1",
    }
    job = await enqueue(store, run_at=now(clock) + timedelta(hours=1), **fields)
    assert {name: getattr(job, name) for name in fields} == fields
    assert job.run_at == now(clock) + timedelta(hours=1)
    assert await store.jobs.get(job.id) == job


async def test_any_mapping_serves_as_metadata(store: JobStore) -> None:
    job = await enqueue(store, metadata=MappingProxyType({"a": 1}))
    assert (await store.jobs.get(job.id)).metadata == {"a": 1}


async def test_a_job_for_later_is_scheduled_and_one_for_earlier_is_idle(store: JobStore, clock: FakeClock) -> None:
    later = await enqueue(store, run_at=now(clock) + timedelta(milliseconds=1))
    earlier = await enqueue(store, run_at=now(clock) - timedelta(days=1))
    assert later.status is JobStatus.SCHEDULED
    assert earlier.status is JobStatus.IDLE
    assert earlier.run_at == now(clock) - timedelta(days=1)


async def test_run_at_may_be_given_in_any_time_zone(store: JobStore, clock: FakeClock) -> None:
    moment = (now(clock) + timedelta(hours=1)).astimezone(timezone(timedelta(hours=5, minutes=45)))
    job = await enqueue(store, run_at=moment)
    assert job.run_at == moment
    assert job.run_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("moment", [datetime.min, datetime(2525, 1, 1, 0, 0, 0, 598000), datetime.max])  # noqa: DTZ001, DTZ901
async def test_the_ends_of_the_calendar_are_kept_to_the_millisecond(store: JobStore, moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    job = await enqueue(store, run_at=moment)
    assert timedelta(0) <= moment - (await store.jobs.get(job.id)).run_at < timedelta(milliseconds=1)


async def test_ids_grow_in_the_order_of_enqueueing(store: JobStore) -> None:
    ids = [(await enqueue(store)).id for _ in range(50)]
    assert ids == sorted(set(ids))


async def test_a_prompt_up_to_the_limit_stays_in_the_row_and_one_byte_more_goes_to_a_file(store: JobStore) -> None:
    limit = store.jobs._backend.inline_limit
    inline, spilled = await enqueue(store, "x" * limit), await enqueue(store, "x" * (limit + 1))
    assert inline.prompt_file_path is None
    assert inline.prompt == "x" * limit
    assert spilled.prompt is None
    assert spilled.prompt_bytes == limit + 1
    assert {spilled.prompt_file_path} == files(store)
    for job, length in ((inline, limit), (spilled, limit + 1)):
        assert await store.jobs.read_prompt(job.id) == "x" * length


async def test_the_limit_counts_bytes_not_characters(store: JobStore) -> None:
    limit = store.jobs._backend.inline_limit
    job = await enqueue(store, "é" * (limit // 2 + 1))
    assert job.prompt_file_path is not None
    assert await store.jobs.read_prompt(job.id) == "é" * (limit // 2 + 1)


async def test_enqueue_many_answers_in_the_order_given(store: JobStore) -> None:
    jobs = await store.jobs.enqueue_many(new(f"prompt {number}", priority=number % 3) for number in range(2500))
    assert [job.prompt for job in jobs] == [f"prompt {number}" for number in range(2500)]
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)
    assert await store.jobs.count() == 2500


async def test_enqueue_many_of_nothing_makes_nothing(store: JobStore) -> None:
    assert await store.jobs.enqueue_many([]) == []


async def test_enqueue_many_spills_each_large_prompt(store: JobStore) -> None:
    jobs = await store.jobs.enqueue_many([new("small"), new(SPILLED), new(SPILLED + "!")])
    assert [await store.jobs.read_prompt(job.id) for job in jobs] == ["small", SPILLED, SPILLED + "!"]
    assert {job.prompt_file_path for job in jobs[1:]} == files(store)


async def test_enqueue_many_with_an_unknown_session_records_nothing_and_leaves_no_file(store: JobStore) -> None:
    with pytest.raises(SessionNotFound) as refusal:
        await store.jobs.enqueue_many([new("small"), new(SPILLED), new(session_id="nobody")])
    assert refusal.value.session_id == "nobody"
    assert await store.jobs.count() == 0
    await eventually(lambda: not files(store))


async def test_an_idempotency_key_returns_the_job_made_first(store: JobStore) -> None:
    first = await enqueue(store, "one", idempotency_key="key")
    again = await enqueue(store, "two", idempotency_key="key", task_type="other")
    assert again == first
    assert await store.jobs.count() == 1


async def test_an_idempotency_key_holds_after_the_job_has_ended_until_it_is_pruned(
    store: JobStore, clock: FakeClock
) -> None:
    claimed = await start(store, idempotency_key="key")
    await store.jobs.complete(claimed, "answer")
    again = await enqueue(store, idempotency_key="key")
    assert (again.id, again.status, again.response) == (claimed.job_id, JobStatus.COMPLETED, "answer")
    clock.advance(1)
    await store.jobs.prune(older_than=0)
    assert (await enqueue(store, idempotency_key="key")).id != claimed.job_id


async def test_concurrent_callers_with_one_key_make_one_job_and_leave_one_file(store: JobStore) -> None:
    jobs = await asyncio.gather(*(enqueue(store, SPILLED, idempotency_key="key") for _ in range(20)))
    assert len({job.id for job in jobs}) == 1
    assert await store.jobs.count() == 1
    await eventually(lambda: files(store) == {jobs[0].prompt_file_path})
    assert await store.jobs.read_prompt(jobs[0].id) == SPILLED


async def test_a_key_twice_in_one_enqueue_many_is_one_job(store: JobStore) -> None:
    jobs = await store.jobs.enqueue_many([new(SPILLED, idempotency_key="key"), new("x"), new(idempotency_key="key")])
    assert jobs[0].id == jobs[2].id != jobs[1].id
    assert await store.jobs.count() == 2


async def test_a_spilled_prompt_that_lost_to_a_key_leaves_no_file(store: JobStore) -> None:
    await enqueue(store, "small", idempotency_key="key")
    job = await enqueue(store, SPILLED, idempotency_key="key")
    assert await store.jobs.read_prompt(job.id) == "small"
    await eventually(lambda: not files(store))


async def test_a_spilled_prompt_of_an_unknown_session_leaves_no_file(store: JobStore) -> None:
    with pytest.raises(SessionNotFound):
        await enqueue(store, SPILLED, session_id="nobody")
    await eventually(lambda: not files(store))


async def test_enqueueing_that_is_cancelled_leaves_a_whole_job_or_nothing(store: JobStore) -> None:
    async def cancelled_after(turns: int) -> None:
        task = asyncio.create_task(enqueue(store, SPILLED))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for turns in range(0, 60, 3):
        await cancelled_after(turns)
    await enqueue(store)  # behind whatever was still queued
    jobs: list[Job] = [job for job in (await store.jobs.list()).items if job.prompt_file_path is not None]
    await eventually(lambda: files(store) == {job.prompt_file_path for job in jobs})
    for job in jobs:
        assert await store.jobs.read_prompt(job.id) == SPILLED
