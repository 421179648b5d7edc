"""Claiming: what is claimed, in which order, by whom, and what falls due before it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobstore import AttemptOutcome, Claim, JobStatus, JobStore, NewJob
from jobstore.testing import FakeClock

from .support import SPILLED, enqueue, eventually, files, outputs_folder, start


def soon(clock: FakeClock, seconds: float = 60) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


def prompts(claims: list[Claim]) -> list[str]:
    return [claim.prompt for claim in claims]


async def test_a_claim_runs_the_job_and_begins_its_first_attempt(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, "Say hello")
    clock.advance(5)
    [claim] = await store.jobs.claim("worker-1", lease=12.5)
    assert (claim.job_id, claim.attempt, claim.prompt, claim.worker_id) == (job.id, 1, "Say hello", "worker-1")
    assert claim.lease_expires_at == soon(clock, 12.5)
    assert claim.job == await store.jobs.get(job.id)
    assert claim.job.status is JobStatus.RUNNING
    assert claim.job.started_at == soon(clock, 0)
    assert (claim.job.attempt, claim.job.attempts_used) == (1, 1)
    [attempt] = await store.jobs.attempts(job.id)
    assert (attempt.attempt, attempt.worker_id, attempt.outcome) == (1, "worker-1", None)
    assert (attempt.started_at, attempt.lease_expires_at) == (soon(clock, 0), soon(clock, 12.5))


async def test_there_is_nothing_to_claim_in_an_empty_store(store: JobStore) -> None:
    assert await store.jobs.claim("worker-1", limit=10) == []


async def test_a_running_job_is_claimed_by_nobody_else(store: JobStore) -> None:
    await start(store)
    assert await store.jobs.claim("worker-2") == []


async def test_higher_priority_comes_first_then_the_earlier_run_at_then_the_earlier_job(
    store: JobStore, clock: FakeClock
) -> None:
    await enqueue(store, "5th", priority=-(2**31))
    await enqueue(store, "3rd")
    await enqueue(store, "4th")
    await enqueue(store, "2nd", run_at=soon(clock, -1))
    await enqueue(store, "1st", priority=2**31 - 1)
    assert prompts(await store.jobs.claim("worker-1", limit=10)) == ["1st", "2nd", "3rd", "4th", "5th"]


async def test_within_a_priority_jobs_come_first_in_first_out(store: JobStore, clock: FakeClock) -> None:
    for number in range(20):
        await enqueue(store, str(number))
        clock.advance(0.001 * (number % 2))
    claimed = [(await store.jobs.claim("worker-1"))[0].prompt for _ in range(20)]
    assert claimed == [str(number) for number in range(20)]


async def test_the_order_holds_across_lanes(store: JobStore) -> None:
    for number in range(12):
        await enqueue(store, str(number), task_type=f"task {number % 3}", api_type=f"api {number % 2}")
    assert prompts(await store.jobs.claim("worker-1", limit=5)) == ["0", "1", "2", "3", "4"]
    assert prompts(await store.jobs.claim("worker-1", limit=50)) == [str(number) for number in range(5, 12)]


async def test_a_limit_is_not_exceeded(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt=str(n), task_type="t", api_type="a") for n in range(5))
    assert len(await store.jobs.claim("worker-1", limit=3)) == 3
    assert len(await store.jobs.claim("worker-1", limit=3)) == 2


async def test_thousands_are_claimed_at_once(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt=str(n), task_type="t", api_type="a") for n in range(3000))
    claims = await store.jobs.claim("worker-1", limit=10_000)
    assert prompts(claims) == [str(n) for n in range(3000)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"task_types": ["plan"]}, ["plan/claude", "plan/gemini"]),
        ({"api_types": ["gemini"]}, ["plan/gemini", "path/gemini"]),
        ({"task_types": ["plan", "title"], "api_types": ["claude"]}, ["plan/claude", "title/claude"]),
        ({"task_types": ("path", "path", "unheard of")}, ["path/gemini"]),
        ({"task_types": {"title"}}, ["title/claude"]),
        ({"task_types": ["plan'; DROP TABLE lanes; --"]}, []),
        ({"task_types": []}, []),
        ({"api_types": []}, []),
    ],
)
async def test_only_the_lanes_asked_for_are_claimed(
    store: JobStore, filters: dict[str, list[str]], expected: list[str]
) -> None:
    for lane in ("plan/claude", "plan/gemini", "path/gemini", "title/claude"):
        task_type, api_type = lane.split("/")
        await enqueue(store, lane, task_type=task_type, api_type=api_type)
    assert prompts(await store.jobs.claim("worker-1", limit=10, **filters)) == expected


async def test_hidden_jobs_are_claimed_all_the_same(store: JobStore) -> None:
    job = await enqueue(store)
    await store.jobs.clear([job.id])
    assert [claim.job_id for claim in await store.jobs.claim("worker-1")] == [job.id]


async def test_a_scheduled_job_is_claimed_once_its_time_has_come(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store, run_at=soon(clock, 60))
    clock.advance(59.999)
    assert await store.jobs.claim("worker-1") == []
    clock.advance(0.001)
    [claim] = await store.jobs.claim("worker-1")
    assert claim.job.status is JobStatus.RUNNING


async def test_any_claim_promotes_what_fell_due_in_every_lane(store: JobStore, clock: FakeClock) -> None:
    job = await enqueue(store, task_type="other", run_at=soon(clock))
    clock.advance(60)
    assert await store.jobs.claim("worker-1", task_types=["mine"]) == []
    assert (await store.jobs.get(job.id)).status is JobStatus.IDLE


async def test_more_jobs_than_one_operation_settles_fall_due_at_once(store: JobStore, clock: FakeClock) -> None:
    await store.jobs.enqueue_many(
        NewJob(prompt=str(n), task_type="t", api_type="a", run_at=soon(clock, 1 + n / 1000)) for n in range(700)
    )
    clock.advance(60)
    claims = await store.jobs.claim("worker-1", limit=1000)
    assert sorted(map(int, prompts(claims))) == list(range(700))


async def test_more_leases_than_one_operation_settles_end_at_once(store: JobStore, clock: FakeClock) -> None:
    await store.jobs.enqueue_many(NewJob(prompt=str(n), task_type="t", api_type="a") for n in range(700))
    await store.jobs.claim("worker-1", limit=700)
    clock.advance(30)
    claims = await store.jobs.claim("worker-2", limit=1000)
    assert sorted(map(int, prompts(claims))) == list(range(700))
    assert {claim.attempt for claim in claims} == {2}


async def test_concurrent_claims_never_share_a_job(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt=str(n), task_type="t", api_type="a") for n in range(100))
    answers = await asyncio.gather(*(store.jobs.claim(f"worker-{n}", limit=3) for n in range(40)))
    ids = [claim.job_id for claims in answers for claim in claims]
    assert len(ids) == len(set(ids)) == 100


async def test_a_claim_has_the_whole_prompt_also_when_it_lies_in_a_file(store: JobStore) -> None:
    await enqueue(store, SPILLED)
    [claim] = await store.jobs.claim("worker-1")
    assert claim.prompt == claim.job.prompt == SPILLED


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    path.write_bytes(b"\xff" + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [remove, truncate, alter])
async def test_an_unreadable_prompt_fails_that_one_job_and_the_others_are_claimed(
    store: JobStore, damage: object
) -> None:
    bad, good, small = await enqueue(store, SPILLED), await enqueue(store, SPILLED), await enqueue(store, "small")
    damage(outputs_folder(store) / bad.prompt_file_path)
    claims = await store.jobs.claim("worker-1", limit=10)
    assert [claim.job_id for claim in claims] == [good.id, small.id]
    failed = await store.jobs.get(bad.id)
    assert (failed.status, failed.error_type) == (JobStatus.FAILED, "prompt_unreadable")
    assert bad.prompt_file_path in failed.error_message
    assert [attempt.outcome for attempt in await store.jobs.attempts(bad.id)] == [AttemptOutcome.FAILED]


async def test_an_unreadable_prompt_does_not_make_a_claim_come_back_empty(store: JobStore) -> None:
    bad, good = await enqueue(store, SPILLED), await enqueue(store, "small")
    (outputs_folder(store) / bad.prompt_file_path).unlink()
    assert [claim.job_id for claim in await store.jobs.claim("worker-1", limit=1)] == [good.id]


@pytest.mark.parametrize("rivals", [True, False])
async def test_claims_that_took_longer_to_arrive_than_their_lease_are_confirmed_or_left_out(
    store: JobStore,
    database: Path | str,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    rivals: bool,  # noqa: FBT001
) -> None:
    job, _ = await enqueue(store, SPILLED), await enqueue(store, "small")
    read = store.jobs._backend.outputs.read

    async def claim_as_another() -> list[Claim]:
        async with JobStore(database, outputs=outputs_folder(store), clock=clock) as another:
            return await another.jobs.claim("another", limit=1)

    def read_slowly(*args: Any) -> bytes:  # noqa: ANN401
        monkeypatch.undo()
        clock.advance(31)
        if rivals:
            [claim] = asyncio.run(claim_as_another())  # in the thread that reads
            assert claim.job_id == job.id
        return read(*args)

    monkeypatch.setattr(store.jobs._backend.outputs, "read", read_slowly)
    claims = await store.jobs.claim("worker-1", limit=2, lease=30)
    assert prompts(claims) == (["small"] if rivals else [SPILLED, "small"])
    assert {one.lease_expires_at for one in claims} == {soon(clock, 30)}
    assert all(beat.extended for beat in await store.jobs.heartbeat(claims))


async def test_a_cancelled_claim_gives_its_jobs_back_whatever_it_was_doing(store: JobStore) -> None:
    await store.jobs.enqueue_many(NewJob(prompt=SPILLED, task_type="t", api_type="a") for _ in range(3))
    for turns in range(0, 80, 2):
        task = asyncio.create_task(store.jobs.claim("worker-1", limit=3))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, list):  # it was faster than the cancellation
            for claim in outcome:
                await store.jobs.release(claim)
        claims = await store.jobs.claim("worker-2", limit=3)
        assert prompts(claims) == [SPILLED] * 3
        for claim in claims:
            assert claim.job.attempts_used == 1
            await store.jobs.release(claim)
    assert len(files(store)) == 3


async def test_a_claim_given_back_by_cancellation_is_claimable_at_once(store: JobStore) -> None:
    job = await enqueue(store, SPILLED)
    task = asyncio.create_task(store.jobs.claim("worker-1"))

    async def runs() -> bool:
        return (await store.jobs.get(job.id)).status is JobStatus.RUNNING or task.done()

    await eventually(runs)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        await store.jobs.release(task.result()[0])
    [claim] = await store.jobs.claim("worker-2")
    assert claim.attempt == 2
