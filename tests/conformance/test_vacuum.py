"""Giving space back, and whose turn the maintenance is."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from jobstore import JobStore, NewJob
from jobstore.operations import maintenance
from jobstore.repositories import maintenance as parts
from jobstore.testing import FakeClock


async def pruned_of_much(store: JobStore, jobs: int = 300) -> None:
    """Leave much free space: of jobs with long prompts, all but one of which were pruned."""
    await store.jobs.enqueue_many(NewJob(prompt="x" * 20_000, task_type="t", api_type="a") for _ in range(jobs))
    await store.jobs.cancel_all(everything=True)
    assert await store.jobs.prune(keep=1) == jobs - 1


async def test_a_vacuum_tells_what_it_took_before_and_after(store: JobStore) -> None:
    await pruned_of_much(store)
    done = await store.vacuum()
    assert done.before.total > 0
    assert done.after.total > 0
    assert done.after.free == 0
    assert await store.jobs.count() == 1
    assert (await store.vacuum()).after.free == 0


async def test_jobs_are_made_between_the_steps_of_a_vacuum(store: JobStore) -> None:
    await pruned_of_much(store)
    steps = 0
    async for _ in store.jobs._backend.engine.vacuum(["background_jobs", "job_attempts"], spare=0, secure=False):
        await store.jobs.enqueue("p", task_type="t", api_type="a")
        steps += 1
    assert steps >= 2
    assert await store.jobs.count() == 1 + steps


async def test_a_task_has_one_holder_until_it_is_due_again(store: JobStore, clock: FakeClock) -> None:
    period = 60_000

    async def take(holder: str) -> bool:
        return await store.run(maintenance.take, "tidy", holder, period)

    async def hold(holder: str) -> bool:
        return await store.run(maintenance.hold, "tidy", holder, period)

    assert await store.run(maintenance.due, ["other", "tidy"]) == ["other", "tidy"]
    assert sorted(await asyncio.gather(*map(take, "abcde"))) == [False] * 4 + [True]
    assert await store.run(maintenance.due, ["other", "tidy"]) == ["other"]
    [row] = await store.execute("SELECT holder FROM maintenance")
    clock.advance(59)
    assert await hold(row["holder"])
    clock.advance(59)
    assert not await take("z")
    clock.advance(1)
    assert await take("z")
    assert not await hold(row["holder"])


async def test_two_stores_do_not_do_the_same_at_the_same_time(
    store: JobStore, database: Path | str, outputs: Path, clock: FakeClock
) -> None:
    async with JobStore(database, outputs=outputs, clock=clock) as other:
        done = await asyncio.gather(store.maintain(), other.maintain(), store.maintain())
    assert sorted(itertools.chain(*done)) == ["retention", "space", "sweep"]


async def test_who_lost_its_task_while_it_stood_still_stops(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two rounds, another process finds the task due and takes it."""
    rounds: list[int] = []

    async def work(_backend: Any, breathe: Any) -> None:  # noqa: ANN401
        for number in range(3):
            rounds.append(number)
            if number == 1:
                clock.advance(3600)
                assert await store.run(maintenance.take, "tidy", "another", 3_600_000)
            await breathe()

    monkeypatch.setattr(parts, "TASKS", (parts.Task("tidy", 3600, work),))
    assert await store.maintain() == []
    assert rounds == [0, 1]


async def test_who_is_at_a_task_for_long_keeps_it(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(_backend: Any, breathe: Any) -> None:  # noqa: ANN401
        for _ in range(3):
            clock.advance(0.6 * 3600)
            await breathe()
            assert not await store.run(maintenance.take, "tidy", "another", 3_600_000)

    monkeypatch.setattr(parts, "TASKS", (parts.Task("tidy", 3600, work),))
    assert await store.maintain() == ["tidy"]


async def test_a_cancelled_maintenance_goes_on_when_it_is_due_again(store: JobStore, clock: FakeClock) -> None:
    await store.jobs.enqueue_many(NewJob(prompt="p", task_type="t", api_type="a") for _ in range(1000))
    await store.jobs.cancel_all(everything=True)
    await store.retention.set("all", older_than=0)
    task: asyncio.Task[object] = asyncio.create_task(store.maintain())
    while await store.jobs.count() == 1000:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or await _ended_first(task)
    clock.advance(3600)
    assert "retention" in await store.maintain()
    assert await store.jobs.count() == 0


async def _ended_first(task: Awaitable[object]) -> bool:
    """Whether the cancellation came too late."""
    return await task == ["retention", "sweep", "space"]
