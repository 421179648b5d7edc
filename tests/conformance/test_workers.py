"""Which workers live: they are listed while they run, and gone when they end, stop or are cut off."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobstore import InvalidArgument, JobStore, WorkerInfo
from jobstore.leases import LIFETIME
from jobstore.operations import registering
from jobstore.operations.registering import Registration
from jobstore.testing import FakeClock
from jobstore.version import VERSION
from jobstore.workers import JobContext, Worker

from .support import enqueue, eventually

ELSEWHERE = Registration("elsewhere", "another-host", 7, "2.0", ["plan"], 4)


async def listed(store: JobStore) -> list[str]:
    return [worker.id for worker in await store.workers.list()]


def moment(clock: FakeClock) -> datetime:
    return datetime.fromtimestamp(clock() / 1000, UTC)


async def test_a_worker_is_listed_while_it_runs(store: JobStore, clock: FakeClock) -> None:
    worker = Worker(store, concurrency=3, worker_id="w")
    release = asyncio.Event()

    @worker.handles("greeting")
    @worker.handles("answer")
    async def handle(_job: JobContext) -> str:
        await release.wait()
        return "done"

    await enqueue(store)
    running = asyncio.ensure_future(worker.run(drain=True))
    await eventually(lambda: worker.running == 1)
    [found] = await store.workers.list()
    assert found == WorkerInfo(
        id="w",
        host=socket.gethostname(),
        pid=os.getpid(),
        version=VERSION,
        task_types=["answer", "greeting"],
        api_types=[],
        concurrency=3,
        running=found.running,  # as of its last sign of life, before or after it claimed
        started_at=moment(clock),
        seen_at=moment(clock),
    )
    release.set()
    await running
    assert await store.workers.list() == []


@pytest.mark.parametrize("end", ["stop", "cancel", "raise"])
async def test_a_worker_that_ends_is_gone_at_once(store: JobStore, end: str) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with store.workers.registered("w", task_types=["plan"]):
            begun.set()
            if end == "raise":
                raise ArithmeticError
            await (asyncio.sleep(0) if end == "stop" else asyncio.Event().wait())

    working = asyncio.ensure_future(work())
    await begun.wait()
    if end == "cancel":
        assert await listed(store) == ["w"]
        working.cancel()
    await asyncio.wait([working])
    assert await store.workers.list() == []


async def test_the_version_is_of_the_users_code_if_given(store: JobStore) -> None:
    worker = Worker(store, worker_id="w", version="2026.1")
    worker.handles("t")(_nothing)
    running = asyncio.ensure_future(worker.run())
    await eventually(lambda: _is_listed(store))
    assert [found.version for found in await store.workers.list()] == ["2026.1"]
    worker.stop()
    await running


async def _nothing(_job: JobContext) -> None:
    """Do nothing."""


async def _is_listed(store: JobStore) -> bool:
    return bool(await store.workers.list())


async def test_what_is_not_heard_of_is_gone_after_its_lifetime(store: JobStore, clock: FakeClock) -> None:
    await store.run(registering.register, ELSEWHERE, 0, 15_000)
    clock.advance(14.999)
    assert await listed(store) == ["elsewhere"]
    clock.advance(0.001)
    assert await listed(store) == []


async def test_a_renewal_keeps_when_it_started_and_tells_what_it_runs(store: JobStore, clock: FakeClock) -> None:
    started = moment(clock)
    await store.run(registering.register, ELSEWHERE, 0, 15_000)
    clock.advance(10)
    await store.run(registering.renew, ELSEWHERE, 3, 15_000)
    clock.advance(10)
    [worker] = await store.workers.list()
    assert (worker.started_at, worker.running) == (started, 3)
    assert (worker.seen_at - started).total_seconds() == 10


async def test_one_that_was_forgotten_while_it_stood_still_is_listed_again(store: JobStore, clock: FakeClock) -> None:
    await store.run(registering.register, ELSEWHERE, 0, 15_000)
    clock.advance(20)
    await store.run(registering.register, ELSEWHERE._replace(id="new"), 0, 15_000)
    assert len(await store.execute("SELECT id FROM workers")) == 1
    await store.run(registering.renew, ELSEWHERE, 0, 15_000)
    assert await listed(store) == ["elsewhere", "new"]


async def test_a_worker_started_again_under_its_name_is_not_forgotten_by_the_end_of_the_first(
    store: JobStore, clock: FakeClock
) -> None:
    await store.run(registering.register, ELSEWHERE, 0, 15_000)
    clock.advance(5)
    again = ELSEWHERE._replace(pid=8)
    await store.run(registering.register, again, 0, 15_000)
    await store.run(registering.unregister, ELSEWHERE)
    [worker] = await store.workers.list()
    assert (worker.pid, worker.started_at) == (8, moment(clock))


async def test_a_worker_that_lives_is_listed_by_other_stores_while_its_event_loop_is_blocked(
    database: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobstore.leases.LIFETIME", 0.3)
    monkeypatch.setattr("jobstore.repositories.workers.LIFETIME", 0.3)
    async with JobStore(database, migrate=True) as store, store.workers.registered("w", task_types=["plan"]):
        before = datetime.now(UTC)
        time.sleep(1)  # noqa: ASYNC251 - that is what is tested
        async with JobStore(database) as other:
            await eventually(lambda: _was_seen_since(other, before))


async def _was_seen_since(store: JobStore, before: datetime) -> bool:
    found = await store.workers.list()
    return bool(found) and (found[0].seen_at - before).total_seconds() > 0.6


async def test_a_worker_withdrawn_during_its_renewal_is_not_listed_by_it(database: Path | str) -> None:
    """Leaving waits for a renewal under way; else its row would come back for as long as it lives."""
    async with JobStore(database, migrate=True) as store:
        leases = store.jobs._backend.leases
        for _ in range(20):
            async with store.workers.registered("w", task_types=["plan"]):
                leases._renewed = -LIFETIME
                leases._poke()
            assert await store.workers.list() == []


async def test_registering_that_is_cancelled_anywhere_leaves_nothing_listed(store: JobStore) -> None:
    async def work() -> None:
        async with store.workers.registered("w", task_types=["plan"]):
            await asyncio.Event().wait()

    for pauses in range(40):
        working = asyncio.ensure_future(work())
        for _ in range(pauses):
            await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait([working])
        assert await store.workers.list() == []


async def test_of_two_workers_with_one_name_the_last_to_end_takes_it_off_the_list(store: JobStore) -> None:
    async with store.workers.registered("w", task_types=["plan"]):
        async with store.workers.registered("w", task_types=["plan"]):
            pass
        assert await listed(store) == ["w"]
    assert await listed(store) == []


async def test_a_store_that_is_unwell_does_not_keep_a_worker_from_running(store: JobStore) -> None:
    await store.execute("ALTER TABLE workers RENAME TO unreachable")
    worker = Worker(store)
    worker.handles("greeting")(_nothing)
    job = await enqueue(store)
    await worker.run(drain=True)
    assert (await store.jobs.get(job.id)).attempts_used == 1


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"worker_id": ""}, "worker_id"),
        ({"worker_id": "a\0"}, "worker_id"),
        ({"task_types": "plan"}, "task_types"),
        ({"task_types": [""]}, "task_types"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"version": "a\0"}, "version"),
    ],
)
async def test_a_worker_that_cannot_be_meant_is_refused(store: JobStore, wrong: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"worker_id": "w", "task_types": ["plan"], **wrong}
    worker_id = given.pop("worker_id")
    with pytest.raises(InvalidArgument, match=field):
        async with store.workers.registered(worker_id, **given):
            pytest.fail("it was accepted")
    assert await store.workers.list() == []
