"""`record()`: calls that the program makes itself, and leases that are kept alive meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from jobstore import AttemptOutcome, InvalidJob, JobStatus, JobStore, LeaseLost, Usage
from jobstore.operations import attempts
from jobstore.repositories import job_intake
from jobstore.testing import FakeClock

from .support import SPILLED, eventually, files, start

LANE = {"task_type": "greeting", "api_type": "claude"}


async def only_job(store: JobStore) -> str:
    [job] = (await store.jobs.list()).items
    return job.id


async def test_a_recorded_call_runs_and_is_completed_at_the_end(store: JobStore) -> None:
    async with store.jobs.record("Say hello", **LANE, metadata={"a": 1}) as call:
        assert call.job == await store.jobs.get(call.job.id)
        assert (call.job.status, call.job.prompt, call.job.metadata) == (JobStatus.RUNNING, "Say hello", {"a": 1})
        assert (call.job.attempt, call.job.attempts_used, call.job.max_attempts) == (1, 1, 1)
        await call.write("Hel")
        await call.write("lo")
    assert call.finished
    assert (call.job.status, call.job.response) == (JobStatus.COMPLETED, "Hello")
    assert await store.jobs.read_response(call.job.id) == "Hello"
    [attempt] = await store.jobs.attempts(call.job.id)
    assert attempt.outcome is AttemptOutcome.COMPLETED


async def test_large_prompts_and_answers_of_recorded_calls_lie_in_files(store: JobStore) -> None:
    async with store.jobs.record(SPILLED, **LANE) as call:
        await call.write(SPILLED)
    assert files(store) == {call.job.prompt_file_path, call.job.output_file_path}
    assert await store.jobs.read_prompt(call.job.id) == SPILLED
    assert await store.jobs.read_response(call.job.id) == SPILLED


async def test_finish_gives_the_answer_and_what_it_cost(store: JobStore) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        job = await call.finish("Hello", usage=Usage(input_tokens=3, output_tokens=1))
        assert (job.status, job.response, job.input_tokens) == (JobStatus.COMPLETED, "Hello", 3)
    assert await store.jobs.get(job.id) == job.model_copy(update={"prompt": "Say hello"})


async def test_finish_without_a_text_takes_what_was_written(store: JobStore) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        await call.write("Hello")
        assert (await call.finish(usage=Usage(output_tokens=1))).response == "Hello"


@pytest.mark.parametrize("answer", ["another", SPILLED])
async def test_finish_with_a_text_counts_instead_of_what_was_written(store: JobStore, answer: str) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        await call.write("a draft")
        await call.finish(answer)
    assert await store.jobs.read_response(call.job.id) == answer


async def test_a_call_that_wrote_nothing_is_completed_without_an_answer(store: JobStore) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        pass
    assert call.job.status is JobStatus.COMPLETED
    assert await store.jobs.read_response(call.job.id) is None


async def record_and_raise(store: JobStore, error: BaseException) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        await call.write("as far as it got")
        raise error


async def test_an_exception_marks_the_call_failed_and_propagates(store: JobStore) -> None:
    error = ConnectionResetError("gone")
    with pytest.raises(ConnectionResetError) as raised:
        await record_and_raise(store, error)
    assert raised.value is error
    job = await store.jobs.get(await only_job(store))
    assert (job.status, job.error_type, job.error_message) == (JobStatus.FAILED, "ConnectionResetError", "gone")
    assert await store.jobs.read_response(job.id) == "as far as it got"


async def test_an_exception_after_finish_changes_nothing_that_was_recorded(store: JobStore) -> None:
    async def call_and_raise() -> None:
        async with store.jobs.record("Say hello", **LANE) as call:
            await call.finish("Hello")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call_and_raise()
    assert (await store.jobs.get(await only_job(store))).status is JobStatus.COMPLETED


async def test_cancelling_the_task_marks_the_call_canceled(store: JobStore) -> None:
    written = asyncio.Event()

    async def call() -> None:
        async with store.jobs.record("Say hello", **LANE) as call:
            await call.write("as far as it got")
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    job = await store.jobs.get(await only_job(store))
    assert job.status is JobStatus.CANCELED
    assert await store.jobs.read_response(job.id) == "as far as it got"
    assert [one.outcome for one in await store.jobs.attempts(job.id)] == [AttemptOutcome.CANCELED]


async def test_a_cancel_scope_marks_the_call_canceled(store: JobStore) -> None:
    with anyio.CancelScope() as scope:
        async with store.jobs.record("Say hello", **LANE) as call:
            await call.write("as far as it got")
            scope.cancel()
            await anyio.sleep_forever()
    assert call.job.status is JobStatus.CANCELED
    assert (await store.jobs.get(call.job.id)).status is JobStatus.CANCELED


async def test_a_timeout_marks_the_call_canceled(store: JobStore) -> None:
    async def call() -> None:
        async with asyncio.timeout(None) as limit, store.jobs.record("Say hello", **LANE):
            limit.reschedule(0)  # it has begun, however long that took
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await call()
    assert (await store.jobs.get(await only_job(store))).status is JobStatus.CANCELED


async def test_cancelling_while_a_call_begins_leaves_nothing_running(store: JobStore) -> None:
    async def call() -> None:
        async with store.jobs.record(SPILLED, **LANE):
            await asyncio.Event().wait()

    for turns in range(0, 50, 2):
        task = asyncio.create_task(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.kv.set("behind", "whatever was still queued")
    await store.kv.set("and", "behind what that has queued")
    jobs = (await store.jobs.list()).items
    assert {job.status for job in jobs} <= {JobStatus.CANCELED}
    await eventually(lambda: files(store) == {job.prompt_file_path for job in jobs})


async def test_no_worker_ever_repeats_a_recorded_call(store: JobStore, clock: FakeClock) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        assert await store.jobs.claim("worker-1") == []
        clock.advance(3600)
        assert await store.jobs.claim("worker-1") == []
        lost = await store.jobs.get(call.job.id)
        assert (lost.status, lost.error_type) == (JobStatus.FAILED, "worker_lost")
        await call.finish("late, but paid for")
    done = await store.jobs.get(call.job.id)
    assert (done.status, done.response) == (JobStatus.COMPLETED, "late, but paid for")


async def test_a_call_that_was_canceled_meanwhile_is_told_so_at_its_end(store: JobStore, clock: FakeClock) -> None:
    async def call() -> None:
        async with store.jobs.record("Say hello", **LANE) as call:
            await store.jobs.cancel(call.job.id)
            clock.advance(30)
            await store.jobs.claim("worker-1")

    with pytest.raises(LeaseLost):
        await call()
    assert (await store.jobs.get(await only_job(store))).status is JobStatus.CANCELED


async def test_what_cannot_be_stored_is_refused_and_the_call_goes_on(store: JobStore) -> None:
    async with store.jobs.record("Say hello", **LANE) as call:
        with pytest.raises(InvalidJob):
            await call.write("\ud800")
        with pytest.raises(InvalidJob):
            await call.finish("\ud800")
        await call.write("Hello")
    assert call.job.response == "Hello"


async def test_two_calls_are_recorded_at_the_same_time(store: JobStore) -> None:
    async with store.jobs.record("one", **LANE) as one, store.jobs.record("two", **LANE) as two:
        await one.write("first")
        await two.write("second")
    assert (one.job.response, two.job.response) == ("first", "second")


# leases that are kept


async def lease_end(store: JobStore, job_id: str) -> int:
    return round((await store.jobs.attempts(job_id))[-1].lease_expires_at.timestamp() * 1000)


async def test_a_kept_lease_is_renewed_again_and_again(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store, lease=0.15)
    with store.jobs.lease_kept(claimed, lease=0.15):
        for _ in range(5):
            clock.advance(100)

            async def renewed() -> bool:
                return await lease_end(store, claimed.job_id) == clock() + 150

            await eventually(renewed)
    assert await store.jobs.claim("worker-2") == []


async def test_a_lease_that_is_kept_no_more_ends(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    with store.jobs.lease_kept(claimed, lease=0.05):
        pass
    clock.advance(60)
    [successor] = await store.jobs.claim("worker-2")
    assert successor.job_id == claimed.job_id


async def test_a_short_lease_is_renewed_in_time_beside_a_long_one(store: JobStore, clock: FakeClock) -> None:
    long, short = await start(store), await start(store)
    with store.jobs.lease_kept(long, lease=3600), store.jobs.lease_kept(short, lease=0.1):
        clock.advance(10)

        async def renewed() -> bool:
            return await lease_end(store, short.job_id) == clock() + 100

        await eventually(renewed)


async def test_the_keeper_tells_once_of_a_requested_cancel_and_of_a_lost_attempt(
    store: JobStore, clock: FakeClock
) -> None:
    claimed = await start(store)
    told: list[str] = []
    loop_thread = threading.current_thread()

    def tell(what: str) -> Callable[[], None]:
        return lambda: told.append(what if threading.current_thread() is loop_thread else "in another thread")

    with store.jobs.lease_kept(claimed, lease=0.05, lost=tell("lost"), cancel_requested=tell("cancel")):
        await store.jobs.cancel(claimed.job_id)
        await eventually(lambda: told == ["cancel"])
        clock.advance(1)

        async def renewed() -> bool:
            return await lease_end(store, claimed.job_id) == clock() + 50

        await eventually(renewed)
        assert told == ["cancel"]
        await store.run(attempts.release, claimed)  # by someone else, not by its holder
        await eventually(lambda: told == ["cancel", "lost"])


async def test_a_lease_is_kept_while_the_event_loop_is_blocked(store: JobStore, database: Path | str) -> None:
    beats = threading.Semaphore(0)
    main = threading.current_thread()

    def clock() -> int:
        if threading.current_thread() is not main:
            beats.release()
        return FakeClock()()

    async with JobStore(database, clock=clock) as another:
        claimed = await start(another)
        with another.jobs.lease_kept(claimed, lease=0.1):
            while beats.acquire(blocking=False):
                pass  # those of before
            for _ in range(5):
                assert beats.acquire(timeout=60)
    assert store is not another


async def test_a_recorded_call_hears_of_a_requested_cancel_and_of_its_lost_lease(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_intake, "RECORD_LEASE", 0.1)
    with pytest.raises(LeaseLost):  # noqa: PT012 - at the end of the block
        async with store.jobs.record("Say hello", **LANE) as call:
            assert not call.cancel_requested
            await store.jobs.cancel(call.job.id)
            await eventually(lambda: call.cancel_requested)
            assert not call.lost
            await store.run(attempts.release, call.claim)  # by someone else
            await eventually(lambda: call.lost)
    assert clock() == FakeClock()()


async def test_closing_the_store_ends_the_keeper(database: Path | str, store: JobStore, clock: FakeClock) -> None:
    async with JobStore(database, clock=clock) as another:
        claimed = await start(another)
        with another.jobs.lease_kept(claimed, lease=0.05):
            await eventually(lambda: "jobstore-leases" in {thread.name for thread in threading.enumerate()})
    assert "jobstore-leases" not in {thread.name for thread in threading.enumerate()}
    assert (await store.jobs.get(claimed.job_id)).status is JobStatus.RUNNING
