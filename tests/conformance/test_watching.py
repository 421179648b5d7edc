"""A feed of the changes of a session's jobs: nothing that anyone changes is missed, and nothing is told twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jobstore import Job, JobStatus, JobStore, NewJob, SessionNotFound, StoreClosed
from jobstore.operations.jobs import MAX_ROWS
from jobstore.repositories import watching
from jobstore.testing import FakeClock

from .support import enqueue


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.0)


@pytest.fixture
async def session(store: JobStore) -> str:
    return (await store.sessions.create(name="demo", project_directory="/src/app")).id


async def until(feed: AsyncIterator[Job], job: Job, status: JobStatus) -> Job:
    async with asyncio.timeout(60):
        async for told in feed:
            if told.id == job.id and told.status is status:
                return told
    raise AssertionError


async def test_each_job_is_told_as_it_is_and_then_each_of_its_changes(store: JobStore, session: str) -> None:
    await enqueue(store)  # of no session
    job = await enqueue(store, session_id=session, priority=5)
    feed = store.jobs.watch(session)
    assert (await anext(feed)).id == job.id
    [claim] = await store.jobs.claim("worker")
    await until(feed, job, JobStatus.RUNNING)
    await store.jobs.progress(claim, status_message="half of it")
    assert (await anext(feed)).status_message == "half of it"
    await store.jobs.complete(claim, "answer")
    told = await until(feed, job, JobStatus.COMPLETED)
    assert (told.prompt, told.response) == (None, None)
    added = await enqueue(store, session_id=session)
    assert (await anext(feed)).id == added.id


async def test_what_another_process_changes_is_told_too(
    store: JobStore, database: Path | str, outputs: Path, clock: FakeClock, session: str
) -> None:
    job = await enqueue(store, session_id=session)
    feed = store.jobs.watch(session)
    await anext(feed)
    async with JobStore(database, outputs=outputs, clock=clock) as other:
        waiting = asyncio.ensure_future(until(feed, job, JobStatus.CANCELED))
        await other.jobs.cancel(job.id)
        await waiting


async def test_a_change_by_a_clock_that_lags_behind_is_told(store: JobStore, clock: FakeClock, session: str) -> None:
    first, second = [await enqueue(store, session_id=session) for _ in range(2)]
    feed = store.jobs.watch(session)
    assert {(await anext(feed)).id for _ in range(2)} == {first.id, second.id}
    clock.advance(watching.OVERLAP - 1)
    await store.jobs.cancel(first.id)
    await until(feed, first, JobStatus.CANCELED)
    clock.advance(1 - watching.OVERLAP)
    await store.jobs.cancel(second.id)
    await until(feed, second, JobStatus.CANCELED)


async def test_more_jobs_than_one_look_returns_are_all_told_though_they_changed_at_once(
    store: JobStore, session: str
) -> None:
    new = (NewJob(prompt="p", task_type="t", api_type="a", session_id=session) for _ in range(2 * MAX_ROWS))
    ids = {job.id for job in await store.jobs.enqueue_many(new)}
    feed = store.jobs.watch(session)
    async with asyncio.timeout(60):
        assert {(await anext(feed)).id for _ in ids} == ids
        one = ids.pop()
        await store.jobs.cancel(one)
        assert (await anext(feed)).id == one


async def test_it_ends_with_the_store_and_begins_with_a_session(store: JobStore, session: str) -> None:
    with pytest.raises(SessionNotFound):
        await anext(store.jobs.watch("unknown"))
    await enqueue(store, session_id=session)
    feed = store.jobs.watch(session)
    await anext(feed)
    waiting = asyncio.ensure_future(anext(feed))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreClosed):
        await waiting
