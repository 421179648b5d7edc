"""Lanes: how they stand, what is claimed while some are paused, and who is woken when a pause ends."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobstore import Claim, InvalidArgument, JobStatus, JobStore, LeaseLost, NewJob, Pause
from jobstore.operations import jobs
from jobstore.testing import FakeClock

from .support import enqueue, eventually, everything, start

LANES = ("plan/claude", "plan/gemini", "title/claude", "title/gemini")


def soon(clock: FakeClock, seconds: float = 60) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC) + timedelta(seconds=seconds)


async def enqueue_lanes(store: JobStore) -> None:
    for lane in LANES:
        task_type, api_type = lane.split("/")
        await enqueue(store, lane, task_type=task_type, api_type=api_type)


def prompts(claims: list[Claim]) -> set[str]:
    return {claim.prompt for claim in claims}


async def claimable(store: JobStore, limit: int = 10) -> set[str]:
    """Claim all that there is, and give it back."""
    claims = await store.jobs.claim("looking", limit=limit)
    for claim in claims:
        await store.jobs.release(claim)
    return prompts(claims)


@pytest.mark.parametrize(
    ("scope", "left"),
    [
        ({}, set()),
        ({"task_type": "plan"}, {"title/claude", "title/gemini"}),
        ({"api_type": "claude"}, {"plan/gemini", "title/gemini"}),
        ({"task_type": "plan", "api_type": "claude"}, set(LANES) - {"plan/claude"}),
        ({"task_type": "claude"}, set(LANES)),
        ({"task_type": "plan'; DROP TABLE lanes; --"}, set(LANES)),
    ],
)
async def test_nothing_is_claimed_from_what_is_paused_until_it_is_resumed(
    store: JobStore, scope: dict[str, str], left: set[str]
) -> None:
    await enqueue_lanes(store)
    await store.lanes.pause(**scope)
    assert await claimable(store) == left
    assert await claimable(store, limit=1) <= left
    assert prompts(await store.jobs.claim("w", limit=10, task_types=["plan"], api_types=["claude"])) <= left
    assert len(await store.lanes.resume(**scope)) == 1
    assert await claimable(store) | {"plan/claude"} == set(LANES)


async def test_a_pause_is_seen_by_every_store_and_outlives_them(database: Path | str, clock: FakeClock) -> None:
    async with JobStore(database, migrate=True, clock=clock) as one, JobStore(database, clock=clock) as other:
        await enqueue(one)
        await other.lanes.pause(reason="maintenance")
        assert await one.jobs.claim("w") == []
    async with JobStore(database, clock=clock) as later:
        assert await later.jobs.claim("w") == []
        [pause] = await later.lanes.pauses()
        assert (pause.scope, pause.until, pause.reason) == ("everything", None, "maintenance")
        await later.lanes.resume()
        assert len(await later.jobs.claim("w")) == 1


@pytest.mark.parametrize("by", ["seconds", "until"])
async def test_a_pause_ends_at_its_time_to_the_millisecond(store: JobStore, clock: FakeClock, by: str) -> None:
    await enqueue(store)
    end: dict[str, Any] = {"seconds": 60} if by == "seconds" else {"until": soon(clock, 60)}
    assert (await store.lanes.pause(api_type="claude", **end)).until == soon(clock, 60)
    clock.advance(59.999)
    assert await store.jobs.claim("w") == []
    assert await store.lanes.pauses() != []
    clock.advance(0.001)
    assert await store.lanes.pauses() == []
    assert len(await store.jobs.claim("w")) == 1


async def test_what_runs_while_its_lane_is_paused_goes_on(store: JobStore) -> None:
    claim = await start(store)
    await store.lanes.pause()
    assert (await store.jobs.heartbeat([claim]))[0].extended
    assert (await store.jobs.complete(claim, "done")).status is JobStatus.COMPLETED


async def test_leases_are_rescued_and_jobs_promoted_while_all_is_paused(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, lease=5)
    later = await enqueue(store, run_at=soon(clock, 5))
    await store.lanes.pause()
    clock.advance(6)
    assert await store.jobs.claim("w") == []
    assert (await store.jobs.get(claim.job_id)).status is JobStatus.IDLE
    assert (await store.jobs.get(later.id)).status is JobStatus.IDLE


# Pausing what is paused


async def test_the_pause_that_lasts_longer_stays(store: JobStore, clock: FakeClock) -> None:
    for seconds, reason, end, kept in (
        (30, "first", 30, "first"),
        (10, "shorter", 30, "first"),
        (60, "longer", 60, "longer"),
        (None, "for good", None, "for good"),
        (3600, "an hour", None, "for good"),
        (None, "still for good", None, "still for good"),
    ):
        held = await store.lanes.pause("plan", "claude", seconds=seconds, reason=reason)
        assert held.until == (None if end is None else soon(clock, end))
        assert held.reason == kept
        assert await store.lanes.pauses() == [held]


async def test_a_pause_that_has_ended_is_in_the_way_of_none(store: JobStore, clock: FakeClock) -> None:
    await store.lanes.pause(seconds=60, reason="old")
    clock.advance(61)
    held = await store.lanes.pause(seconds=5, reason="new")
    assert (held.until, held.reason, held.paused_at) == (soon(clock, 5), "new", soon(clock, 0))


async def test_a_lane_stays_paused_as_long_as_any_of_its_pauses_lasts(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store, task_type="plan", api_type="claude")
    await store.lanes.pause(seconds=10, reason="all")
    await store.lanes.pause("plan", seconds=30, reason="type")
    await store.lanes.pause(api_type="claude", seconds=20, reason="api")
    for advance, reason in ((0, "type"), (15, "type"), (10, "type")):
        clock.advance(advance)
        [lane] = await store.lanes.list()
        assert (lane.paused, lane.pause_reason) == (True, reason)
        assert await store.jobs.claim("w") == []
    clock.advance(6)
    assert len(await store.jobs.claim("w")) == 1


async def test_resuming_ends_all_pauses_within_and_none_beyond(store: JobStore) -> None:
    async def scopes(*resumed: str | None) -> tuple[list[str], list[str]]:
        for scope in ((None, None), ("plan", None), ("plan", "claude"), (None, "claude"), ("title", "claude")):
            await store.lanes.pause(*scope)
        ended = [pause.scope for pause in await store.lanes.resume(*resumed)]
        held = [pause.scope for pause in await store.lanes.pauses()]
        await store.lanes.resume()
        return ended, held

    everything, plan, both = "everything", "task type plan", "lane plan/claude"
    api, title = "API claude", "lane title/claude"
    assert await scopes() == ([everything, api, plan, both, title], [])
    assert await scopes("plan") == ([plan, both], [everything, api, title])
    assert await scopes(None, "claude") == ([api, both, title], [everything, plan])
    assert await scopes("plan", "claude") == ([both], [everything, api, plan, title])
    assert await scopes("title") == ([title], [everything, api, plan, both])
    assert await store.lanes.resume() == []


async def test_a_pause_that_has_ended_is_not_resumed(store: JobStore, clock: FakeClock) -> None:
    await store.lanes.pause(seconds=1)
    clock.advance(2)
    assert await store.lanes.resume() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": -1},
        {"seconds": "10"},
        {"seconds": float("nan")},
        {"seconds": 1, "until": datetime(2100, 1, 1, tzinfo=UTC)},
        {"until": datetime(2100, 1, 1)},  # noqa: DTZ001
        {"until": datetime(2001, 1, 1, tzinfo=UTC)},
        {"task_type": ""},
        {"task_type": "a\0"},
        {"api_type": 1},
        {"reason": None},
        {"reason": "a\0"},
        {"reason": "\ud800"},
    ],
)
async def test_a_pause_that_cannot_be_meant_is_refused(store: JobStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await store.lanes.pause(**wrong)
    assert await store.lanes.pauses() == []


# Failing and pausing in one


async def test_failing_can_pause_the_lane_for_as_long(store: JobStore, clock: FakeClock) -> None:
    claim = await start(store, task_type="plan", api_type="claude")
    other = await enqueue(store, "other", task_type="plan", api_type="gemini")
    await enqueue(store, "same", task_type="plan", api_type="claude")
    failed = await store.jobs.fail(claim, "slow down", retry_in=30, error_type="rate_limit", pause_lane=True)
    assert (failed.status, failed.run_at) == (JobStatus.SCHEDULED, soon(clock, 30))
    [pause] = await store.lanes.pauses()
    assert (pause.scope, pause.until) == ("lane plan/claude", soon(clock, 30))
    assert pause.reason == f"rate_limit of job {claim.job_id}, reported by worker-1"
    assert [one.job_id for one in await store.jobs.claim("w", limit=5, lease=60)] == [other.id]
    clock.advance(30)
    assert len(await store.jobs.claim("w", limit=5)) == 2


async def test_a_failure_does_not_shorten_an_operators_pause(store: JobStore) -> None:
    claim = await start(store, task_type="plan", api_type="claude")
    held = await store.lanes.pause("plan", "claude", reason="by hand")
    await store.jobs.fail(claim, "slow down", retry_in=30, pause_lane=True)
    assert await store.lanes.pauses() == [held]


async def test_the_lane_is_paused_also_when_the_job_has_failed_for_good(store: JobStore) -> None:
    claim = await start(store, max_attempts=1)
    assert (await store.jobs.fail(claim, "no", retry_in=30, pause_lane=True)).status is JobStatus.FAILED
    assert len(await store.lanes.pauses()) == 1


async def test_without_a_lease_nothing_is_paused(store: JobStore) -> None:
    claim = await start(store)
    await store.jobs.release(claim)
    before = await everything(store)
    with pytest.raises(LeaseLost):
        await store.jobs.fail(claim, "no", retry_in=30, pause_lane=True)
    assert await store.lanes.pauses() == []
    assert await everything(store) == before


async def test_a_pause_needs_to_know_for_how_long(store: JobStore) -> None:
    claim = await start(store)
    with pytest.raises(InvalidArgument, match="retry_in"):
        await store.jobs.fail(claim, "no", pause_lane=True)
    await store.jobs.fail(claim, "no", retry_in=0, pause_lane=True)
    assert await store.lanes.pauses() == []


# Waking


async def test_a_sleeping_worker_wakes_when_a_pause_ends(store: JobStore, clock: FakeClock) -> None:
    await enqueue(store)
    await store.lanes.pause(seconds=60)
    assert await store.jobs.claim("w") == []
    assert await store.jobs._backend.read(jobs.next_due) == clock() + 60_000
    clock.advance(59.9)
    token = await store.jobs.wake()
    async with asyncio.timeout(60):
        await store.jobs.wake(since=token)
    clock.advance(0.1)
    token = await store.jobs.wake()
    async with asyncio.timeout(60):
        await store.jobs.wake(since=token)
    assert len(await store.jobs.claim("w")) == 1


async def test_a_pause_that_ends_between_a_claim_and_the_sleep_is_not_slept_through(
    store: JobStore, clock: FakeClock
) -> None:
    await enqueue(store)
    await store.lanes.pause(seconds=60)
    token = await store.jobs.wake()
    assert await store.jobs.claim("w") == []
    clock.advance(60)
    async with asyncio.timeout(60):
        await store.jobs.wake(since=token)
    assert len(await store.jobs.claim("w")) == 1


async def test_a_pause_that_has_ended_keeps_nobody_awake(store: JobStore, clock: FakeClock) -> None:
    await store.lanes.pause(seconds=60)
    clock.advance(60)
    assert await store.jobs.claim("w") == []
    assert await store.jobs._backend.read(jobs.next_due) is None


async def test_resuming_wakes_those_who_sleep_in_another_store(database: Path | str, clock: FakeClock) -> None:
    async with JobStore(database, migrate=True, clock=clock) as working, JobStore(database, clock=clock) as other:
        await enqueue(working)
        await other.lanes.pause()
        claiming = asyncio.ensure_future(claim_patiently(working))
        await eventually(lambda: working.stats().wake.waiting > 0)
        await other.lanes.resume()
        async with asyncio.timeout(60):
            assert len(await claiming) == 1


async def claim_patiently(store: JobStore) -> list[Claim]:
    """Claim as a worker does, which sleeps while there is nothing."""
    token = await store.jobs.wake()
    while not (claims := await store.jobs.claim("w")):
        token = await store.jobs.wake(since=token)
    return claims


# How they stand


async def test_lanes_tell_what_waits_and_for_how_long(store: JobStore, clock: FakeClock) -> None:
    assert await store.lanes.list() == []
    await enqueue(store, task_type="plan", priority=5)
    clock.advance(10)
    await enqueue(store, task_type="plan", priority=9)
    await enqueue(store, task_type="plan", run_at=soon(clock, 60))
    await enqueue(store, task_type="title", api_type="gemini")
    await store.jobs.claim("w", task_types=["title"])
    clock.advance(5)
    await store.lanes.pause("title", seconds=60, reason="why")
    plan, title = await store.lanes.list()
    assert plan.model_dump() == {
        "task_type": "plan", "api_type": "claude", "idle": 2, "scheduled": 1, "running": 0, "oldest_seconds": 15.0,
        "paused": False, "paused_until": None, "pause_reason": "",
    }  # fmt: skip
    assert title.model_dump() == {
        "task_type": "title", "api_type": "gemini", "idle": 0, "scheduled": 0, "running": 1, "oldest_seconds": None,
        "paused": True, "paused_until": soon(clock, 60), "pause_reason": "why",
    }  # fmt: skip


async def test_what_no_job_is_in_yet_can_be_paused(store: JobStore) -> None:
    held = await store.lanes.pause("new", reason="not ready")
    assert await store.lanes.list() == []
    assert await store.lanes.pauses() == [held]
    await enqueue(store, task_type="new")
    assert await store.jobs.claim("w") == []


async def test_pauses_are_models(store: JobStore, clock: FakeClock) -> None:
    held = await store.lanes.pause("plan", seconds=1)
    assert held == Pause(task_type="plan", api_type=None, paused_at=soon(clock, 0), until=soon(clock, 1), reason="")


async def test_pausing_and_failing_at_the_same_time_settles_on_the_longest(store: JobStore, clock: FakeClock) -> None:
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(20))
    claims = await store.jobs.claim("w", limit=20)
    await asyncio.gather(
        *(store.jobs.fail(claim, "no", retry_in=10 + n, pause_lane=True) for n, claim in enumerate(claims))
    )
    [pause] = await store.lanes.pauses()
    assert pause.until == soon(clock, 29)
