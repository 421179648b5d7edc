"""Callers of the PostgreSQL engine that are cancelled anywhere: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from psycopg import AsyncConnection

from jobstore import JobStore
from jobstore.engines import postgres as engine_module
from jobstore.operations import leasing
from jobstore.sql import Operation, fetch_one
from tests.conformance.support import eventually

from .postgres_support import (
    HOUR,
    backend_pid,
    cancelled_by_scope,
    cancelled_by_task,
    database,
    enqueue,
    keys,
    lock,
    no_open_transaction,
    proxy,
    sessions,
    someone_waits_aside,
    store,
    stranger,
)

__all__ = ["database", "proxy", "store", "stranger"]  # fixtures


async def sessions_and_tasks(database: str) -> tuple[int, list[str]]:
    """Return how many of our sessions the server has, and our tasks."""
    ours = [task for task in asyncio.all_tasks() if "jobstore" in str(task.get_coro()) or "pool" in task.get_name()]
    return await sessions(database), [str(task) for task in ours]


@pytest.mark.parametrize("cancelled", [cancelled_by_task, cancelled_by_scope])
async def test_opening_that_is_cancelled_anywhere_leaves_no_connection_and_no_task(
    database: str, cancelled: Callable[[Awaitable[object], float], Awaitable[None]]
) -> None:
    async with JobStore(database, migrate=True):
        pass
    for milliseconds in range(0, 60, 2):
        store = JobStore(database)
        await cancelled(store.open(), milliseconds / 1000)
        await store.close()

    left: list[tuple[int, list[str]]] = []

    async def nothing_is_left() -> bool:
        left.append(await sessions_and_tasks(database))
        return left[-1] == (0, [])

    try:
        await eventually(nothing_is_left)
    except TimeoutError:
        pytest.fail(f"there were left {left[-1]}")


async def test_a_heartbeat_that_is_cancelled_anywhere_leaves_a_connection_that_works(
    store: JobStore, database: str
) -> None:
    await enqueue(store)
    [claim] = await store.jobs.claim("worker")
    engine = store.jobs._backend.engine
    for tenths in range(60):
        await cancelled_by_task(engine.write_aside(leasing.heartbeat, keys([claim]), HOUR), tenths / 10_000)
        [beat] = await engine.write_aside(leasing.heartbeat, keys([claim]), HOUR)
        assert beat.extended
        await eventually(lambda: no_open_transaction(database), within=50)  # before the server would end it


class Calls:
    """Calls of all kinds, and what their callers came to know before they were cancelled."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.acknowledged: set[str] = set()
        self.held: set[str] = set()
        self.done: set[str] = set()

    async def make(self, call: str) -> None:
        match call:
            case "enqueue":
                self.acknowledged.add((await enqueue(self._store)).id)
            case "spill":
                job = await self._store.jobs.enqueue("p" * 70_000, task_type="task", api_type="api")
                self.acknowledged.add(job.id)
            case "claim":
                self.held.update(claim.job_id for claim in await self._store.jobs.claim("mine", limit=2))
            case "complete":
                for claim in await self._store.jobs.claim("mine"):
                    self.held.add(claim.job_id)
                    await self._store.jobs.complete(claim, "r" * 70_000)
                    self.done.add(claim.job_id)
            case "own":
                await self._store.execute("UPDATE background_jobs SET priority = priority")
            case _:
                await self._store.jobs.list()


async def test_cancelling_callers_at_random_points_loses_nothing_and_leaves_no_open_transaction(
    store: JobStore, database: str, tmp_path: Path
) -> None:
    dice = random.Random(11)  # noqa: S311 - delays
    calls = Calls(store)

    async def cancelled(call: str) -> None:
        task = asyncio.ensure_future(calls.make(call))
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.02)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    for _ in range(12):
        chosen = dice.choices(["enqueue", "spill", "claim", "complete", "own", "read"], k=25)
        await asyncio.gather(*map(cancelled, chosen))
    await enqueue(store)  # behind all that was given back
    stats = store.stats().writer
    assert (stats.waiting_operations, stats.waiting_bytes, stats.blocked_callers) == (0, 0, 0)
    await eventually(lambda: no_open_transaction(database))
    rows = {row["id"]: row["status"] for row in await store.execute("SELECT id, status FROM background_jobs")}
    assert calls.acknowledged <= set(rows)
    assert {rows[job_id] for job_id in calls.done} <= {"completed"}
    assert {job_id for job_id, status in rows.items() if status == "running"} <= calls.held
    await store.close()
    named = await look(database, tmp_path / "outputs")
    files = {path.relative_to(tmp_path / "outputs").as_posix() for path in (tmp_path / "outputs").glob("*/*/*")}
    assert files == named


async def look(database: str, outputs: Path) -> set[str]:
    """Return the files that rows name."""
    async with JobStore(database, outputs=outputs) as store:
        rows = await store.execute(
            "SELECT prompt_file_path AS path FROM background_jobs WHERE prompt_file_path IS NOT NULL"
            " UNION SELECT output_file_path FROM background_jobs WHERE output_file_path IS NOT NULL"
        )
        return {row["path"] for row in rows}


async def test_a_caller_that_gives_up_waiting_for_a_locked_row_is_answered_for(
    store: JobStore, database: str, stranger: AsyncConnection[tuple[object, ...]]
) -> None:
    await enqueue(store)
    [claim] = await store.jobs.claim("worker")
    await lock(stranger, [claim.job_id])
    waiting = asyncio.ensure_future(store.jobs.complete(claim, "done"))
    await eventually(lambda: someone_waits_aside(database))
    waiting.cancel()
    await asyncio.wait([waiting])
    closing = asyncio.ensure_future(store.close())
    await stranger.commit()
    await closing
    assert not any(task.get_coro().__name__ == "_commit_aside" for task in asyncio.all_tasks())  # type: ignore[union-attr]
    async with JobStore(database) as again:
        assert await again.jobs.count(status="completed") == 1
    await eventually(lambda: no_open_transaction(database), within=50)


# Reads


def slow_read(_now: int, seconds: float) -> Operation[None]:
    yield from fetch_one("SELECT pg_sleep(:seconds)", seconds=seconds)


@pytest.mark.parametrize("cancelled", [cancelled_by_task, cancelled_by_scope])
async def test_a_read_whose_caller_is_cancelled_costs_no_connection(
    database: str, cancelled: Callable[[Awaitable[object], float], Awaitable[None]]
) -> None:
    async with JobStore(database, migrate=True, pool_size=1) as store:
        engine = store.jobs._backend.engine
        pid = await engine.read(backend_pid)
        for _ in range(10):
            await cancelled(engine.read(slow_read, 0.02), 0.005)
            await cancelled(store.jobs.wake(since=await store.jobs.wake()), 0.0005)
        assert await engine.read(backend_pid) == pid


async def test_a_long_read_whose_caller_is_cancelled_ends_on_the_server_too(
    database: str, stranger: AsyncConnection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "ABANDONED_SECONDS", 0.01)

    async def sleeping() -> bool:
        cursor = await stranger.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
        row = await cursor.fetchone()
        await stranger.rollback()
        return row != (0,)

    async with JobStore(database, migrate=True, pool_size=1) as store:
        reading = asyncio.ensure_future(store.jobs._backend.engine.read(slow_read, 3600))
        await eventually(sleeping)
        reading.cancel()
        await asyncio.wait([reading])

        async def over() -> bool:
            return not await sleeping()

        await eventually(over)
        assert await store.jobs._backend.engine.read(backend_pid) > 0


def failing_read(_now: int, seconds: float) -> Operation[None]:
    yield from fetch_one("SELECT pg_sleep(:seconds)", seconds=seconds)
    yield from fetch_one("SELECT 1 / 0")


async def test_a_read_that_fails_after_its_caller_was_cancelled_is_told_to_nobody(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with JobStore(database, migrate=True, pool_size=1) as store:
        await cancelled_by_task(store.jobs._backend.engine.read(failing_read, 0.02), 0.005)
    gc.collect()
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text


async def test_reads_whose_callers_were_cancelled_take_no_more_than_half_of_the_pool(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "ABANDONED_SECONDS", 3600)
    async with JobStore(database, migrate=True, pool_size=4) as store:
        engine = store.jobs._backend.engine
        reads = [asyncio.ensure_future(engine.read(slow_read, 3600)) for _ in range(10)]
        await eventually(lambda: store.stats().pool.in_use == 4)
        for reading in reads:
            reading.cancel()
        await asyncio.wait(reads)
        assert await engine.read(backend_pid) > 0
        left = engine._abandoned  # type: ignore[attr-defined]
        await eventually(lambda: len(left) == 2)  # the others end in their own time
        for reading in left:
            reading.cancel()
