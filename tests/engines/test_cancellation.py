"""Cancelling a caller anywhere leaves no open transaction and loses no job."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobstore import DatabaseInUse, Job, JobStore
from jobstore.engines.sqlite import Durability, SQLiteEngine, connect_writer
from jobstore.ownership import exclusive
from jobstore.sql import Operation
from jobstore.testing import FakeClock

OnWriter = Callable[[Callable[[sqlite3.Connection], object]], Awaitable[object]]


class Stall:
    """Holds up the writing connection, so that what is queued stays queued until it is let go."""

    def __init__(self, engine: SQLiteEngine) -> None:
        self._go_on = threading.Event()
        self._held = engine._writer.submit(lambda _: self._go_on.wait())

    async def let_go(self) -> None:
        self._go_on.set()
        await self._held


def enqueue(store: JobStore, **fields: object) -> Awaitable[Job]:
    return store.jobs.enqueue("p", task_type="task", api_type="api", **fields)  # type: ignore[arg-type]


async def in_transaction(engine: SQLiteEngine) -> bool:
    return await engine._writer.submit(lambda connection: connection.in_transaction)


async def test_a_queued_write_is_withdrawn(store: JobStore, engine: SQLiteEngine) -> None:
    stall = Stall(engine)
    first = asyncio.ensure_future(enqueue(store))  # on its way to the thread
    await asyncio.sleep(0.001)
    queued = asyncio.ensure_future(enqueue(store))
    await asyncio.sleep(0)
    queued.cancel()
    await stall.let_go()
    await first
    assert queued.cancelled() or await asyncio.gather(queued, return_exceptions=True)
    assert await store.jobs.count() == 1


async def test_a_write_in_a_batch_runs_to_its_end(store: JobStore, engine: SQLiteEngine) -> None:
    stall = Stall(engine)
    task = asyncio.ensure_future(enqueue(store))
    while not engine._queue._in_flight:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await stall.let_go()
    assert not await in_transaction(engine)
    assert await store.jobs.count() == 1


async def test_a_claim_cancelled_in_its_batch_gives_the_jobs_back_at_once(
    store: JobStore, engine: SQLiteEngine
) -> None:
    job = await enqueue(store)
    stall = Stall(engine)
    task = asyncio.ensure_future(store.jobs.claim("gone"))
    while not engine._queue._in_flight:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await stall.let_go()
    [claim] = await store.jobs.claim("next")
    assert claim.job_id == job.id
    assert claim.job.attempts_used == 1


async def test_a_claim_cancelled_by_a_scope_of_anyio_gives_the_jobs_back(store: JobStore, engine: SQLiteEngine) -> None:
    job = await enqueue(store)
    stall = Stall(engine)
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_later(0.001, scope.cancel)
        await store.jobs.claim("gone")
    await stall.let_go()
    [claim] = await store.jobs.claim("next")
    assert claim.job_id == job.id


async def test_a_claim_cancelled_while_the_store_closes_gives_the_jobs_back(
    store: JobStore, engine: SQLiteEngine
) -> None:
    job = await enqueue(store)
    stall = Stall(engine)
    task = asyncio.ensure_future(store.jobs.claim("gone"))
    while not engine._queue._in_flight:
        await asyncio.sleep(0)
    task.cancel()
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    await stall.let_go()
    await closing
    await store.open()
    assert (await store.jobs.get(job.id)).status == "idle"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_cancelling_at_random_points_loses_nothing(data: st.DataObject) -> None:
    calls = data.draw(st.lists(st.sampled_from(["enqueue", "claim", "complete", "spill", "kv", "read"]), max_size=25))
    delays = data.draw(st.lists(st.integers(0, 12), min_size=len(calls), max_size=len(calls)))
    asyncio.run(run_and_cancel(calls, delays))


async def run_and_cancel(calls: list[str], delays: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clock = FakeClock()
        async with JobStore(Path(folder) / "jobs.db", migrate=True, clock=clock, inline_limit=10) as store:
            for _ in range(5):
                await enqueue(store)
            acknowledged: list[Job] = []
            held: list[str] = []
            await asyncio.gather(
                *(cancelled(call, store, delay, acknowledged, held) for call, delay in zip(calls, delays, strict=True)),
                return_exceptions=True,
            )
            engine = store._open.backend.engine  # type: ignore[union-attr]
            assert isinstance(engine, SQLiteEngine)
            assert not await in_transaction(engine)
            for job in acknowledged:
                await store.jobs.get(job.id)
            # What no caller holds is claimable at once: nothing stays running that nobody knows of.
            await store.jobs.claim("everything", limit=1000)
            running = {job.id for job in (await store.jobs.list(status="running", limit=1000)).items}
            claimed_by_lost_callers = [
                job_id
                for job_id in running
                if (await store.jobs.attempts(job_id))[-1].worker_id != "everything" and job_id not in held
            ]
            assert claimed_by_lost_callers == []
            stats = store.stats().writer
            assert (stats.waiting_operations, stats.waiting_bytes, stats.blocked_callers) == (0, 0, 0)
            await store.close()
            files = {str(path.relative_to(Path(folder) / "jobs.db.outputs"))
                     for path in Path(folder).glob("jobs.db.outputs/*/*/*")}  # fmt: skip
            await store.open()
            rows = await store.execute(
                "SELECT prompt_file_path AS path FROM background_jobs WHERE prompt_file_path IS NOT NULL"
                " UNION SELECT output_file_path FROM background_jobs WHERE output_file_path IS NOT NULL"
            )
            assert files == {row["path"] for row in rows}


async def cancelled(call: str, store: JobStore, delay: int, acknowledged: list[Job], held: list[str]) -> None:
    """Make a call and cancel it after so many turns of the event loop."""
    task = asyncio.ensure_future(make(call, store, acknowledged, held))
    for _ in range(delay):
        await asyncio.sleep(0)
    if delay % 3 == 2:
        await asyncio.sleep(0.0005 * delay)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def make(call: str, store: JobStore, acknowledged: list[Job], held: list[str]) -> None:
    match call:
        case "enqueue":
            acknowledged.append(await enqueue(store))
        case "spill":
            job = await store.jobs.enqueue("a text that spills", task_type="task", api_type="api")
            acknowledged.append(job)
        case "claim":
            held.extend(claim.job_id for claim in await store.jobs.claim("mine", limit=2))
        case "complete":
            for claim in await store.jobs.claim("mine"):
                held.append(claim.job_id)
                await store.jobs.complete(claim, "an answer that spills")
        case "kv":
            await store.kv.set("k", 1)
        case _:
            await store.jobs.list()


def have_alone(database: Path) -> None:
    with exclusive(database, "restore"):
        pass


@pytest.mark.parametrize("connecting", [True, False])
async def test_opening_that_is_cancelled_holds_its_share_until_the_file_is_closed(
    database: Path,
    connecting: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else someone might put another file in its place meanwhile, and closing this one would remove that one's log."""
    async with JobStore(database, migrate=True):
        pass
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        let_go.wait()

    def connect(path: Path, durability: Durability) -> sqlite3.Connection:
        connection = connect_writer(path, durability)
        hold()
        return connection

    def check(_now: int) -> Operation[None]:
        hold()
        return
        yield

    if connecting:
        monkeypatch.setattr("jobstore.engines.sqlite.connect_writer", connect)
    opening = asyncio.ensure_future(SQLiteEngine(database, FakeClock(), 1, "full").open(check))
    await asyncio.to_thread(held.wait)
    for _ in range(3):
        opening.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(DatabaseInUse):
        await asyncio.to_thread(have_alone, database)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await asyncio.to_thread(have_alone, database)
