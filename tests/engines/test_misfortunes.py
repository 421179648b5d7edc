"""What goes wrong in one place stays there: unreadable rows, closing under those who wait, folders that are away."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Generator
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from jobstore import InvalidArgument, Job, JobStatus, JobStore, OutputError, StatementFailed, StoreClosed
from jobstore.clock import from_milliseconds
from jobstore.engines.sqlite import SQLiteEngine
from jobstore.testing import FakeClock


def enqueue(store: JobStore, prompt: str = "p", **fields: object) -> Awaitable[Job]:
    return store.jobs.enqueue(prompt, task_type="task", api_type="api", **fields)  # type: ignore[arg-type]


async def test_a_row_that_is_no_utf8_blocks_nobody_and_is_not_quoted(store: JobStore) -> None:
    job = await enqueue(store)
    await store.execute("UPDATE background_jobs SET prompt = CAST(x'736563726574ff' AS TEXT)")
    with pytest.raises(StatementFailed) as caught:
        await store.jobs.claim("worker")
    error: BaseException | None = caught.value
    while error is not None:
        assert "secret" not in str(error)
        error = error.__cause__ or error.__context__
    await enqueue(store, "other")
    assert (await store.jobs.cancel(job.id)).status is JobStatus.CANCELED


async def test_closing_ends_the_waiting_of_everyone(store: JobStore, engine: SQLiteEngine) -> None:
    job = await enqueue(store)
    token = await store.jobs.wake()
    waiters = [
        asyncio.ensure_future(store.jobs.wait(job.id)),
        asyncio.ensure_future(store.jobs.wake(since=token)),
    ]
    while engine.stats().wake.waiting < 2:
        await asyncio.sleep(0)
    await store.close()
    finished, woken = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(finished, StoreClosed)
    assert woken != token


async def test_readers_that_wait_while_the_store_closes_are_refused(store: JobStore, engine: SQLiteEngine) -> None:
    go_on = threading.Event()
    held = [asyncio.ensure_future(engine._readers.run(lambda _: go_on.wait())) for _ in range(4)]
    while engine.stats().pool.in_use < 4:
        await asyncio.sleep(0)
    late = asyncio.ensure_future(store.jobs.count())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    with pytest.raises(StoreClosed):
        await late
    go_on.set()
    await closing
    await asyncio.gather(*held)


async def test_a_store_that_many_tasks_open_at_once_is_opened_once(database: Path) -> None:
    store = JobStore(database, migrate=True)
    await asyncio.gather(*(store.open() for _ in range(5)))
    threads = [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    await store.close()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert not database.with_name("jobs.db-wal").exists()  # the last connection has left


async def forsaken(store: JobStore, clock: FakeClock) -> Job:
    """Return a running job whose only holder died without a word."""
    job = await enqueue(store, max_attempts=1)
    [claim] = await store.jobs.claim("gone", lease=0.02)
    async with store.jobs.output(claim) as output:
        await output.write("so far")
    clock.advance(1)
    return job


async def test_waiting_for_a_job_whose_holder_is_gone_comes_to_an_end(store: JobStore, clock: FakeClock) -> None:
    job = await forsaken(store, clock)
    ended = await store.jobs.wait(job.id)
    assert (ended.status, ended.error_type) == (JobStatus.FAILED, "worker_lost")


async def test_waiting_for_a_due_job_that_nobody_claims_asks_for_nothing(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, run_at=from_milliseconds(clock.now + 1000))
    clock.advance(2)
    before = store.stats().writer.batches
    with pytest.raises(TimeoutError, match=job.id):
        await store.jobs.wait(job.id, timeout=0.05)
    assert store.stats().writer.batches == before


async def test_tailing_a_job_whose_holder_is_gone_comes_to_an_end(store: JobStore, clock: FakeClock) -> None:
    job = await forsaken(store, clock)
    assert [text async for text in store.jobs.tail(job.id)] == ["so far"]
    assert (await store.jobs.get(job.id)).error_type == "worker_lost"


async def test_a_job_whose_holder_is_gone_can_be_retried_at_once(store: JobStore, clock: FakeClock) -> None:
    job = await forsaken(store, clock)
    assert (await store.jobs.retry(job.id)).status is JobStatus.IDLE


async def test_a_job_whose_holder_is_gone_is_canceled_at_once(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store)
    await store.jobs.claim("gone", lease=0.02)
    clock.advance(1)
    assert (await store.jobs.cancel(job.id)).status is JobStatus.CANCELED


async def test_what_is_no_operation_is_refused_with_the_reason(store: JobStore) -> None:
    def no_generator(now: int) -> int:
        return now

    def wrong_yield(_now: int) -> Generator[str, None, None]:
        yield "SELECT 1"

    for wrong in (no_generator, wrong_yield):
        with pytest.raises(InvalidArgument, match="make_operation"):
            await store.run(wrong)  # type: ignore[arg-type]
    await enqueue(store)


async def test_a_folder_that_is_away_fails_no_job(database: Path) -> None:
    folder = database.with_name("jobs.db.outputs")
    async with JobStore(database, migrate=True, inline_limit=4) as store:
        jobs = [await enqueue(store, "a long prompt") for _ in range(5)]
        folder.rename(folder.with_name("elsewhere"))
        with pytest.raises(OutputError, match="is its disk mounted"):
            await store.jobs.claim("worker", limit=2)
        await store.execute("SELECT 1")
        assert await store.jobs.count(status="idle") == 5
        folder.with_name("elsewhere").rename(folder)
        claims = await store.jobs.claim("worker", limit=5)
        assert [claim.prompt for claim in claims] == ["a long prompt"] * 5
        assert [claim.job_id for claim in claims] == [job.id for job in jobs]


async def test_a_sleeper_wakes_when_a_lease_of_its_own_store_ends(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store)
    token = await store.jobs.wake()
    sleeping = asyncio.ensure_future(store.jobs.wake(since=token))
    await asyncio.sleep(0)
    await store.jobs.claim("worker", lease=0.05)
    assert await sleeping > token
    clock.advance(1)


def test_threads_of_the_program_that_wait_for_the_store_do_not_stop_it(database: Path) -> None:
    """As a web framework does with sync endpoints: all of anyio's threads wait for calls of the store."""

    async def main() -> list[str | None]:
        async with JobStore(database, migrate=True, inline_limit=4) as store:

            def endpoint() -> str | None:
                job = anyio.from_thread.run(enqueue_long, store)
                return anyio.from_thread.run(store.jobs.read_prompt, job.id)

            return await asyncio.gather(*(anyio.to_thread.run_sync(endpoint) for _ in range(60)))

    async def enqueue_long(store: JobStore) -> Job:
        return await enqueue(store, "a long prompt")

    assert asyncio.run(main()) == ["a long prompt"] * 60


async def test_a_folder_whose_name_is_no_text_is_as_good_as_any(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    async with JobStore(folder / "jobs.db", migrate=True, inline_limit=4) as store:
        job = await enqueue(store, prompt="longer than that")
        assert await store.jobs.read_prompt(job.id) == "longer than that"
