"""`wait()` and `wake()`: nothing is missed, whoever commits it and whenever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobstore import JobNotFound, JobStatus, JobStore, NewJob, StoreClosed
from jobstore.testing import FakeClock

from .support import claim, enqueue, eventually, start


@pytest.fixture
async def another(store: JobStore, database: Path | str, clock: FakeClock) -> AsyncIterator[JobStore]:
    """Another store on the same database: as foreign as another process."""
    assert store.is_open
    async with JobStore(database, clock=clock) as another:
        yield another


async def soon(task: asyncio.Task[object]) -> object:
    """Return what a task that must not hang returns."""
    return await asyncio.wait_for(task, 60)


async def waiting(store: JobStore, count: int = 1) -> None:
    await eventually(lambda: store.stats().wake.waiting == count)


# wait


async def test_wait_returns_the_job_once_it_has_ended(store: JobStore) -> None:
    claimed = await start(store)
    task = asyncio.create_task(store.jobs.wait(claimed.job_id))
    await waiting(store)
    await store.jobs.progress(claimed, status_message="half")
    await store.jobs.complete(claimed, "answer")
    assert await soon(task) == await store.jobs.get(claimed.job_id)
    assert task.result().response == "answer"


@pytest.mark.parametrize("timeout", [None, 0, -1, 60])
async def test_wait_for_a_job_that_has_ended_returns_at_once(store: JobStore, timeout: float | None) -> None:
    job = await enqueue(store)
    await store.jobs.cancel(job.id)
    assert (await store.jobs.wait(job.id, timeout)).status is JobStatus.CANCELED


async def test_wait_gives_up_after_its_timeout(store: JobStore) -> None:
    job = await enqueue(store)
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError):
            await store.jobs.wait(job.id, timeout)
    assert store.stats().wake.waiting == 0


async def test_wait_hears_of_what_another_store_commits(store: JobStore, another: JobStore) -> None:
    for _ in range(10):
        claimed = await start(another)
        task = asyncio.create_task(store.jobs.wait(claimed.job_id))
        await waiting(store)
        await another.jobs.complete(claimed, "answer")
        assert (await soon(task)).response == "answer"


async def test_wait_misses_nothing_however_early_the_end_comes(store: JobStore, another: JobStore) -> None:
    for turns in range(0, 40, 2):
        claimed = await start(another)
        task = asyncio.create_task(store.jobs.wait(claimed.job_id))
        for _ in range(turns):
            await asyncio.sleep(0)
        await another.jobs.complete(claimed, "answer")
        assert (await soon(task)).response == "answer"


async def test_waiting_for_a_job_that_is_pruned_ends(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    task = asyncio.create_task(store.jobs.wait(claimed.job_id))
    await waiting(store)
    await asyncio.gather(store.jobs.fail(claimed, "no"), store.jobs.prune(older_than=0))
    clock.advance(1)
    await store.jobs.prune(older_than=0)
    [outcome] = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(outcome, JobNotFound) or outcome.status is JobStatus.FAILED


async def test_many_wait_for_one_job(store: JobStore) -> None:
    claimed = await start(store)
    tasks = [asyncio.create_task(store.jobs.wait(claimed.job_id)) for _ in range(50)]
    await waiting(store, 50)
    await store.jobs.complete(claimed, "answer")
    assert {job.response for job in await asyncio.gather(*tasks)} == {"answer"}
    assert store.stats().wake.waiting == 0


# wake


async def test_what_came_since_the_token_wakes_at_once(store: JobStore) -> None:
    token = await store.jobs.wake()
    assert await store.jobs.claim("worker-1") == []
    await enqueue(store)
    after = await asyncio.wait_for(store.jobs.wake(since=token), 60)
    assert after != token
    assert after == await store.jobs.wake()


async def test_without_anything_new_wake_waits(store: JobStore) -> None:
    await enqueue(store)
    token = await store.jobs.wake()
    task = asyncio.create_task(store.jobs.wake(since=token))
    await waiting(store)
    looks = store.stats().wake.foreign
    await store.kv.set("a key", "is no work")
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done() or store.stats().wake.foreign > looks  # a look for what others did may wake as well
    await enqueue(store)
    await soon(task)


@pytest.mark.parametrize("what", ["enqueue", "enqueue_many", "release", "fail", "snooze", "retry", "execute"])
async def test_whatever_makes_a_job_claimable_wakes(store: JobStore, what: str) -> None:
    claimed, done = await start(store), await start(store)
    await store.jobs.complete(done)
    token = await store.jobs.wake()
    task = asyncio.create_task(store.jobs.wake(since=token))
    await waiting(store)
    calls = {
        "enqueue": lambda: enqueue(store),
        "enqueue_many": lambda: store.jobs.enqueue_many([NewJob(prompt="x", task_type="t", api_type="a")]),
        "release": lambda: store.jobs.release(claimed),
        "fail": lambda: store.jobs.fail(claimed, "no", retry_in=0),
        "snooze": lambda: store.jobs.snooze(claimed, 0),
        "retry": lambda: store.jobs.retry(done.job_id),
        "execute": lambda: store.execute("UPDATE background_jobs SET priority = 1"),
    }
    await calls[what]()
    await soon(task)


async def test_another_stores_commits_wake(store: JobStore, another: JobStore) -> None:
    for _ in range(10):
        token = await store.jobs.wake()
        task = asyncio.create_task(store.jobs.wake(since=token))
        await waiting(store)
        await enqueue(another)
        await soon(task)


async def test_nothing_is_missed_between_an_empty_claim_and_the_sleep(store: JobStore, another: JobStore) -> None:
    """The loop that every worker runs, against enqueues of its own and of another store at any moment."""
    claimed: list[str] = []

    async def work() -> None:
        token = await store.jobs.wake()
        while len(claimed) < 40:
            claims = await store.jobs.claim("worker-1", limit=5)
            claimed.extend(one.job_id for one in claims)
            if not claims:
                token = await store.jobs.wake(since=token)

    worker = asyncio.create_task(work())
    for number in range(40):
        for _ in range(number % 13):
            await asyncio.sleep(0)
        await enqueue(another if number % 2 else store)
        if number % 5 == 0:
            await eventually(lambda number=number: len(claimed) > number)
    await soon(worker)
    assert len(set(claimed)) == 40


async def test_the_first_thing_that_a_store_does_is_to_wait_and_nothing_is_missed(
    store: JobStore, database: Path | str, clock: FakeClock
) -> None:
    for turns in range(0, 30, 3):
        async with JobStore(database, clock=clock) as fresh:
            token = await fresh.jobs.wake()
            task = asyncio.create_task(fresh.jobs.wake(since=token))
            for _ in range(turns):
                await asyncio.sleep(0)
            await enqueue(store)
            await soon(task)


async def test_commits_of_others_are_noticed_while_leases_are_kept(store: JobStore, another: JobStore) -> None:
    kept = await start(store)
    with store.jobs.lease_kept(kept, lease=0.005):
        for _ in range(60):
            claimed = await start(another)
            task = asyncio.create_task(store.jobs.wait(claimed.job_id))
            await waiting(store)
            await another.jobs.complete(claimed, "answer")
            assert (await soon(task)).response == "answer"


async def test_the_end_of_a_lease_wakes(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=0.03)
    token = await store.jobs.wake()
    await asyncio.wait_for(store.jobs.wake(since=token), 60)
    clock.advance(0.03)
    await asyncio.wait_for(store.jobs.wake(since=token), 60)
    assert (await claim(store, claimed.job)).attempt == 2


async def test_a_run_at_wakes(store: JobStore, clock: FakeClock) -> None:
    run_at = datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=0.03)
    job = await enqueue(store, run_at=run_at)
    token = await store.jobs.wake()
    await asyncio.wait_for(store.jobs.wake(since=token), 60)
    clock.advance(0.03)
    await asyncio.wait_for(store.jobs.wake(since=token), 60)
    await claim(store, job)


async def test_a_waiting_worker_can_be_cancelled(store: JobStore) -> None:
    task = asyncio.create_task(store.jobs.wake(since=await store.jobs.wake()))
    await waiting(store)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.stats().wake.waiting == 0


@pytest.mark.parametrize("what", ["wait", "wake", "tail"])
async def test_whoever_waits_while_the_store_is_closed_is_told_so(store: JobStore, what: str) -> None:
    job = await enqueue(store)
    token = await store.jobs.wake()
    calls = {
        "wait": lambda: store.jobs.wait(job.id),
        "wake": lambda: store.jobs.wake(since=token),
        "tail": lambda: anext(store.jobs.tail(job.id)),
    }
    task = asyncio.ensure_future(calls[what]())
    if what == "tail":
        await asyncio.sleep(0)
    else:
        await waiting(store)
    await store.close()
    with pytest.raises(StoreClosed):
        await asyncio.wait_for(task, 60)
