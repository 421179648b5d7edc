"""PostgreSQL under attack: rows locked by strangers, lost connections, a server that crashes, clocks that are wrong."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg import AsyncConnection

from jobstore import Claim, ConnectionLost, DatabaseBusy, DatabaseError, Job, JobStore, StatementFailed, StoreClosed
from jobstore.clock import Clock, system_clock, to_milliseconds
from jobstore.engines import postgres as engine_module
from jobstore.engines.base import Request
from jobstore.engines.postgres import ASIDE, PostgresEngine
from jobstore.operations import leasing
from jobstore.repositories.job_queries import OVERDUE_SLEEP
from jobstore.sql import Operation, execute, fetch_one, guarded
from jobstore.testing import FakeClock
from jobstore.workers import AttemptEvent, JobContext, Worker
from tests import postgres
from tests.conformance.support import eventually

from .postgres_proxy import COMMIT, Proxy, When

HOUR = 3_600_000
SHORT = 0.5
"""Seconds of patience, for tests of what happens at its end."""


@pytest.fixture
def database(postgres_database: str) -> Iterator[str]:
    """Return the URL of an empty database, in which a test's stores must leave no connection behind."""
    postgres.empty(postgres_database)
    yield postgres_database
    ours = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobstore'"
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        end = time.monotonic() + 10
        while left := connection.execute(f"SELECT state, query {ours}").fetchall():
            assert time.monotonic() < end, left


@pytest.fixture
async def store(database: str, tmp_path: Path) -> AsyncIterator[JobStore]:
    async with JobStore(database, migrate=True, outputs=tmp_path / "outputs") as store:
        yield store


@pytest.fixture
async def stranger(database: str) -> AsyncIterator[AsyncConnection[tuple[object, ...]]]:
    """A connection of someone else, whose transactions the test ends."""
    async with await AsyncConnection.connect(database) as connection:
        yield connection


@pytest.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with Proxy(database).listening() as proxy:
        yield proxy


def enqueue(store: JobStore, **fields: object) -> Awaitable[Job]:
    return store.jobs.enqueue("p", **{"task_type": "task", "api_type": "api", **fields})  # type: ignore[arg-type]


async def enqueue_many(store: JobStore, count: int) -> list[Job]:
    return await asyncio.gather(*(enqueue(store) for _ in range(count)))


async def open_transactions(database: str) -> int:
    """Return how many connections of stores are in a transaction."""
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'jobstore' AND xact_start IS NOT NULL"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


class Load:
    """Callers that enqueue, claim and complete, and remember whatever was acknowledged to them."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._ending = False
        self.enqueued: list[str] = []
        self.completed: list[str] = []

    async def run(self, callers: int, attack: Callable[[], Awaitable[None]]) -> None:
        """Let callers work for as long as an attack takes, and then until nothing is left to claim."""
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._call())
            await attack()
            self._ending = True

    async def progress(self, steps: int) -> None:
        """Return as soon as so many more jobs were completed."""
        enough = len(self.completed) + steps
        await eventually(lambda: len(self.completed) >= enough)

    async def check(self) -> None:
        """Check that nothing that was acknowledged is lost, done twice or stuck."""
        rows = await self._store.execute("SELECT id, status, attempt FROM background_jobs")
        assert set(self.enqueued) == {row["id"] for row in rows}
        assert len(self.enqueued) == len(rows)
        assert Counter(self.completed) == Counter(self.enqueued)
        assert {(row["status"], row["attempt"]) for row in rows} == {("completed", 1)}
        attempts = await self._store.execute("SELECT job_id FROM job_attempts")
        assert len(attempts) == len(rows)

    async def _call(self) -> None:
        while True:
            if not self._ending:
                self.enqueued.append((await enqueue(self._store)).id)
            claims = await self._store.jobs.claim("worker", limit=2, lease=3600)
            for claim in claims:
                job = await self._store.jobs.complete(claim, "done")
                self.completed.append(job.id)
            if self._ending and not claims:
                return


# Rows that someone else has locked


async def lock(stranger: AsyncConnection[tuple[object, ...]], jobs: list[str]) -> None:
    await stranger.execute("SELECT 1 FROM background_jobs WHERE id = ANY(%s) FOR UPDATE", [jobs])


@pytest.mark.parametrize("locked", [1, 10])
async def test_rows_that_a_stranger_locked_stall_nobody_else(
    store: JobStore, stranger: AsyncConnection[tuple[object, ...]], locked: int
) -> None:
    await enqueue_many(store, locked)
    claims = await store.jobs.claim("worker", limit=locked)
    await lock(stranger, [claim.job_id for claim in claims])
    waiting = [asyncio.ensure_future(store.jobs.complete(claim, "late")) for claim in claims]

    for _ in range(3):
        await enqueue_many(store, 20)
        others = await store.jobs.claim("other", limit=20)
        assert len(others) == 20
        beats = await store.jobs.heartbeat(claims + others)
        assert all(beat.extended for beat in beats)
        await asyncio.gather(*(store.jobs.complete(claim, "soon") for claim in others))
    assert not any(task.done() for task in waiting)

    await stranger.commit()
    done = await asyncio.gather(*waiting)
    assert {job.status for job in done} == {"completed"}
    assert await store.jobs.count(status="completed") == 60 + locked


async def test_who_waits_for_locked_rows_in_turns_waits_no_longer_than_alone(
    database: str, stranger: AsyncConnection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 2.0)
    async with JobStore(database, migrate=True) as store:
        await enqueue_many(store, 3 * ASIDE)
        claims = await store.jobs.claim("worker", limit=3 * ASIDE)
        await lock(stranger, [claim.job_id for claim in claims])
        started = time.monotonic()
        works = [store.jobs.complete(claim, "late") for claim in claims]
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DatabaseBusy}
        assert time.monotonic() - started < 2 * 2.0


async def test_an_expired_job_that_a_stranger_locked_is_rescued_later_and_stalls_no_claim(
    database: str, stranger: AsyncConnection[tuple[object, ...]], clock: FakeClock
) -> None:
    async with JobStore(database, migrate=True, clock=clock) as store:
        expired = await enqueue(store)
        await store.jobs.claim("gone", lease=30)
        await lock(stranger, [expired.id])
        clock.advance(31)
        others = {(await enqueue(store)).id for _ in range(5)}
        for _ in others:
            [claim] = await store.jobs.claim("other")
            assert claim.job_id in others
            await store.jobs.complete(claim, "soon")
        assert await store.jobs.claim("other") == []
        await stranger.commit()
        [claim] = await store.jobs.claim("other")
        assert (claim.job_id, claim.attempt) == (expired.id, 2)


async def test_what_is_due_but_locked_by_a_stranger_keeps_nobody_busy(
    database: str, stranger: AsyncConnection[tuple[object, ...]], clock: FakeClock
) -> None:
    async with JobStore(database, migrate=True, clock=clock) as store:
        expired = await enqueue(store)
        await store.jobs.claim("gone", lease=30)
        await lock(stranger, [expired.id])
        clock.advance(31)
        started = time.monotonic()
        for _ in range(20):
            token = await store.jobs.wake()
            assert await store.jobs.claim("idle") == []
            await store.jobs.wake(since=token)
        assert time.monotonic() - started >= 20 * OVERDUE_SLEEP


async def test_a_lease_that_a_stranger_locked_is_not_lost(
    store: JobStore, stranger: AsyncConnection[tuple[object, ...]]
) -> None:
    await enqueue_many(store, 3)
    claims = await store.jobs.claim("worker", limit=3)
    await stranger.execute("SELECT 1 FROM job_attempts WHERE job_id = %s FOR UPDATE", [claims[0].job_id])
    beats = await store.jobs.heartbeat(claims)
    assert [beat.extended for beat in beats] == [True, True, True]
    await stranger.commit()


# Connections that are lost


@pytest.mark.parametrize(
    "moments",
    [["before"], ["during"], ["after"], ["ended"], ["after", "before"], ["after", "ended"], ["before"] * 4],
)
async def test_a_commit_whose_answer_is_lost_is_made_exactly_once(
    store: JobStore, proxy: Proxy, moments: list[When]
) -> None:
    async with JobStore(proxy.url) as through:
        await enqueue(through)
        proxy.cut(COMMIT, *moments)
        acknowledged = [await enqueue(through)]
        acknowledged += await enqueue_many(through, 3)
    assert proxy.cuts_left == 0
    rows = await store.execute("SELECT id FROM background_jobs")
    assert len(rows) == 5
    assert {job.id for job in acknowledged} <= {row["id"] for row in rows}


@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_an_operation_of_the_users_own_is_carried_out_once_though_its_commit_is_cut(
    store: JobStore, proxy: Proxy, moment: When
) -> None:
    await store.execute("CREATE TABLE counted (number INTEGER)")
    await store.execute("INSERT INTO counted VALUES (0)")
    async with JobStore(proxy.url) as through:
        proxy.cut(COMMIT, moment)
        [row] = await through.execute("UPDATE counted SET number = number + 1 RETURNING number")
    assert proxy.cuts_left == 0
    assert row["number"] == 1
    assert list(map(dict, await store.execute("SELECT number FROM counted"))) == [{"number": 1}]


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("text", [b"status = 'running', attempt = attempt + 1", b"INSERT INTO job_attempts", COMMIT])
async def test_a_claim_in_whose_midst_the_connection_is_cut_returns_its_job_once(
    store: JobStore, proxy: Proxy, text: bytes, moment: When
) -> None:
    job = await enqueue(store)
    async with JobStore(proxy.url) as through:
        proxy.cut(text, moment)
        [claim] = await through.jobs.claim("worker")
        assert proxy.cuts_left == 0
        assert (claim.job_id, claim.attempt) == (job.id, 1)
        assert await through.jobs.claim("worker") == []
        await through.jobs.complete(claim, "done")
    [attempt] = await store.jobs.attempts(job.id)
    assert attempt.outcome == "completed"


@pytest.mark.parametrize("moment", ["before", "during", "after"])
async def test_a_completion_that_spills_keeps_its_file_though_its_commit_is_cut(
    store: JobStore, proxy: Proxy, tmp_path: Path, moment: When
) -> None:
    job = await enqueue(store)
    async with JobStore(proxy.url, outputs=tmp_path / "outputs") as through:
        [claim] = await through.jobs.claim("worker")
        proxy.cut(COMMIT, moment)
        await through.jobs.complete(claim, "long " * 20_000)
    assert await store.jobs.read_response(job.id) == "long " * 20_000


async def test_a_file_stays_when_nobody_can_tell_whether_its_row_was_committed(
    store: JobStore, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 0.1)
    async with JobStore(proxy.url, outputs=tmp_path / "outputs") as through:
        proxy.cut(COMMIT, "after")
        proxy.refuses = True
        with pytest.raises(ConnectionLost):
            await through.jobs.enqueue("long " * 20_000, task_type="task", api_type="api")
        assert proxy.cuts_left == 0
    [job] = (await store.jobs.list()).items
    assert await store.jobs.read_prompt(job.id) == "long " * 20_000


# A server that stays away


@pytest.fixture
async def impatient(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobStore]:
    """A store that waits for a lost server for a short time, behind a proxy."""
    monkeypatch.setattr(engine_module, "PATIENCE", SHORT)
    async with JobStore(proxy.url, migrate=True) as store:
        await store.execute("CREATE TABLE counted (number INTEGER)")
        yield store


@guarded
def change_and_fail(_now: int) -> Operation[None]:
    yield from execute("INSERT INTO counted VALUES (1)")
    raise LookupError


async def test_a_batch_driven_one_by_one_waits_for_a_lost_server_once(impatient: JobStore, proxy: Proxy) -> None:
    proxy.cut(b"SAVEPOINT operation", "before")  # which only an operation by itself needs
    proxy.refuses = True
    works = [impatient.jobs._backend.write(change_and_fail) for _ in range(64)]
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
    assert proxy.refused < 32  # tries of all 64 together
    assert proxy.cuts_left == 0


async def test_a_batch_that_is_cancelled_drives_no_other_request(impatient: JobStore, proxy: Proxy) -> None:
    proxy.cut(b"SAVEPOINT operation", "before")
    proxy.refuses = True
    works = [asyncio.ensure_future(impatient.jobs._backend.write(change_and_fail)) for _ in range(3)]
    await eventually(lambda: proxy.refused > 0)
    [batch] = impatient.jobs._backend.engine._tasks  # type: ignore[attr-defined]
    batch.cancel()  # as an event loop does at its end
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreClosed}


async def test_whoever_waits_behind_for_a_lost_server_waits_no_longer_than_alone(
    impatient: JobStore, proxy: Proxy
) -> None:
    proxy.refuses = True
    proxy.cut(b"BEGIN", "before")
    started = time.monotonic()
    works = [impatient.execute("INSERT INTO counted VALUES (1)") for _ in range(64)]  # each a batch of its own
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
    assert time.monotonic() - started < 64 * SHORT / 4
    proxy.refuses = False
    assert list(await impatient.execute("SELECT * FROM counted")) == []


async def test_whoever_came_later_still_waits_when_the_first_has_given_up(impatient: JobStore, proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut(b"BEGIN", "before")
    first = asyncio.ensure_future(enqueue(impatient))
    await eventually(lambda: proxy.refused > 1)
    later = asyncio.ensure_future(enqueue(impatient))
    with pytest.raises(ConnectionLost):
        await first
    assert not later.done()
    proxy.refuses = False
    assert (await later).status == "idle"


async def test_a_worker_outlives_a_server_that_is_away_for_longer_than_a_caller_waits(
    impatient: JobStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(impatient)
    worker.handles("task")(lambda job: job.prompt)
    first = await enqueue(impatient, task_type="task")
    running = asyncio.ensure_future(worker.run())
    await impatient.jobs.wait(first.id, timeout=60)
    proxy.refuses = True
    proxy.cut(b"BEGIN", "before")
    impatient.jobs._backend.engine.work.notify()  # so that it claims
    await eventually(lambda: "cannot claim, trying again" in caplog.text)
    assert not running.done()
    proxy.refuses = False
    second = await enqueue(impatient, task_type="task")
    assert (await impatient.jobs.wait(second.id, timeout=60)).status == "completed"
    worker.stop()
    await running


async def test_a_worker_whose_network_was_cut_finds_out_that_its_lease_was_lost_meanwhile(
    impatient: JobStore, database: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(impatient, lease=0.3)
    began, cancelled, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @worker.handles("task")
    async def handle(_job: JobContext) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @worker.on_lease_lost
    def tell(_event: AttemptEvent) -> None:
        told.set()

    job = await enqueue(impatient, task_type="task")
    running = asyncio.ensure_future(worker.run())
    async with JobStore(database) as other:
        await began.wait()
        proxy.refuses = True
        proxy.cut(b"BEGIN", *["before"] * 20)
        await eventually(lambda: "heartbeat of 1 claims failed" in caplog.text)
        claims: list[Claim] = []
        while not claims:
            await other.jobs.wake(since=await other.jobs.wake())
            claims = await other.jobs.claim("other", lease=3600)
        assert not cancelled.is_set()  # it cannot know
        proxy.forget_cuts()
        proxy.refuses = False
        await cancelled.wait()
        await told.wait()
        await other.jobs.complete(claims[0], "the other's")
        worker.stop()
        await running
        assert (await other.jobs.get(job.id)).response == "the other's"
    assert "attempt 1 lease lost, result dropped" in caplog.text


# Connections whose client has vanished without the server's hearing of it


async def sessions(database: str) -> int:
    """Return how many connections of stores there are."""
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobstore'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("text", [b"INSERT INTO background_jobs", b"INSERT INTO store_writers", COMMIT])
async def test_a_session_that_hangs_on_a_vanished_client_holds_up_nobody(
    database: str, proxy: Proxy, text: bytes, moment: When
) -> None:
    async with JobStore(database, migrate=True):
        pass
    proxy.keeps_servers = True
    async with JobStore(proxy.url) as through, asyncio.timeout(20):
        proxy.cut(text, moment)  # at first use: later, statements travel by name
        first = await enqueue(through, idempotency_key="key")
        assert proxy.cuts_left == 0
        again = await enqueue(through, idempotency_key="key")
        assert (again.id, await through.jobs.count()) == (first.id, 1)
        await eventually(lambda: no_open_transaction(database))


async def test_a_commit_that_is_cancelled_leaves_a_connection_that_works(
    store: JobStore, database: str, stranger: AsyncConnection[tuple[object, ...]]
) -> None:
    await store.execute("CREATE TABLE counted (number INTEGER)")
    await stranger.execute("LOCK TABLE store_writers IN SHARE MODE")
    engine = store.jobs._backend.engine

    def insert(_now: int, number: int) -> Operation[int]:
        yield from fetch_one("SELECT set_config('lock_timeout', '0', true)")
        return (yield from execute("INSERT INTO counted VALUES (:number)", number=number))

    work = asyncio.ensure_future(engine.write_aside(insert, 1))
    await eventually(lambda: someone_waits_aside(database))  # for the mark, which goes with the COMMIT
    work.cancel()
    await asyncio.wait([work])
    await stranger.commit()
    assert await engine.write_aside(insert, 2) == 1
    assert list(map(dict, await store.execute("SELECT number FROM counted"))) == [{"number": 2}]


async def test_leases_are_renewed_though_the_session_hangs_that_renewed_them(store: JobStore, proxy: Proxy) -> None:
    await enqueue(store)
    [claim] = await store.jobs.claim("worker")
    proxy.keeps_servers = True
    async with JobStore(proxy.url) as through, asyncio.timeout(20):
        engine = through.jobs._backend.engine
        proxy.cut(COMMIT, "before")
        for _ in range(2):
            [beat] = await engine.write_aside(leasing.heartbeat, keys([claim]), HOUR)
            assert beat.extended
        assert proxy.cuts_left == 0


async def test_a_lost_session_that_is_still_at_work_is_not_waited_for_without_end(
    database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", SHORT)
    async with JobStore(proxy.url, migrate=True) as through, asyncio.timeout(20):
        lock = through.jobs._backend.engine._writer._lock  # type: ignore[attr-defined]
        async with await AsyncConnection.connect(database, autocommit=True) as busy:
            working = asyncio.ensure_future(busy.execute("SELECT pg_advisory_lock(%s), pg_sleep(3600)", [lock]))
            await eventually(lambda: is_held(database, lock))
            await terminate(database)
            with pytest.raises(ConnectionLost, match="not known"):
                await enqueue(through)
            await busy.cancel_safe()
            await asyncio.wait([working])
        await enqueue(through)
        assert await through.jobs.count() == 1


async def test_a_lost_session_that_begins_late_is_ended_as_well(store: JobStore, database: str) -> None:
    lock = store.jobs._backend.engine._writer._lock  # type: ignore[attr-defined]
    late = await AsyncConnection.connect(database)
    await late.execute("SELECT pg_advisory_xact_lock(%s)", [lock])  # as that session would
    await enqueue(store)
    assert not await is_held(database, lock)
    assert await store.jobs.count() == 1
    await late.close()


async def is_held(database: str, lock: int) -> bool:
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [lock])
        return await cursor.fetchone() == (False,)


async def test_the_server_itself_ends_a_transaction_whose_client_says_no_more(store: JobStore) -> None:
    def ask(_now: int) -> Operation[str]:
        row = yield from fetch_one("SELECT current_setting('idle_in_transaction_session_timeout') AS timeout")
        assert row is not None
        return str(row["timeout"])

    assert await store.run(ask) == "1min"


async def test_the_server_gives_up_a_read_that_takes_too_long(store: JobStore) -> None:
    def ask(_now: int) -> Operation[str]:
        row = yield from fetch_one("SELECT current_setting('statement_timeout') AS timeout")
        assert row is not None
        return str(row["timeout"])

    engine = store.jobs._backend.engine
    assert await engine.read(ask) == await engine.write(Request(ask, ())) == "1min"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
async def test_a_network_that_says_nothing_is_found_out_within_seconds_rather_than_hours(proxy: Proxy) -> None:
    async with JobStore(proxy.url, migrate=True) as through:
        connection = through.jobs._backend.engine._writer._connection  # type: ignore[attr-defined]
        with socket.socket(fileno=os.dup(connection.fileno())) as tcp:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
    async with JobStore(proxy.url + "&keepalives_idle=7") as through:
        connection = through.jobs._backend.engine._writer._connection  # type: ignore[attr-defined]
        with socket.socket(fileno=os.dup(connection.fileno())) as tcp:
            assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7


async def test_reads_succeed_soon_after_a_long_absence_of_the_server(
    database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "POOL_TIMEOUT", 0.3)
    async with JobStore(proxy.url, migrate=True) as through:
        proxy.refuses = True
        await terminate(database)
        for _ in range(6):  # so long that whoever doubles his pauses would be at seconds
            with pytest.raises(ConnectionLost, match="could not be reached"):
                await through.jobs.count()
            assert (through.stats().pool.open, through.stats().pool.in_use) == (0, 0)
        proxy.refuses = False
        outcomes = [await asyncio.gather(through.jobs.count(), return_exceptions=True) for _ in range(2)]
        assert [0] in outcomes


async def sessions_and_tasks(database: str) -> tuple[int, list[str]]:
    """Return how many of our sessions the server has, and our tasks."""
    ours = [task for task in asyncio.all_tasks() if "jobstore" in str(task.get_coro()) or "pool" in task.get_name()]
    return await sessions(database), [str(task) for task in ours]


async def cancelled_by_task(work: Awaitable[object], after: float) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait([task])


async def cancelled_by_scope(work: Awaitable[object], after: float) -> None:
    with anyio.move_on_after(after):
        await work


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
        assert await open_transactions(database) == 0


async def test_reads_go_on_when_all_reading_connections_were_lost(store: JobStore, database: str) -> None:
    await enqueue(store)
    await asyncio.gather(*(store.jobs.count() for _ in range(50)))
    assert store.stats().pool.open > 3
    await terminate(database)
    assert await store.jobs.count() == 1
    await terminate(database)
    assert await asyncio.gather(*(store.jobs.count() for _ in range(50))) == [1] * 50


@pytest.mark.parametrize(
    ("sql", "repeated", "error"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid()) AS done", 4, ConnectionLost),
        ("SELECT 1 / 0 AS done", 0, StatementFailed),
    ],
)
async def test_a_read_is_repeated_for_lost_connections_alone_and_not_for_ever(
    store: JobStore, sql: str, repeated: int, error: type[DatabaseError]
) -> None:
    tries = 0

    def fails(_: int, times: int) -> Operation[int]:
        nonlocal tries
        tries += 1
        row = yield from fetch_one(sql if tries <= times else "SELECT 1 AS done")
        return int((row or {})["done"])

    engine = store.jobs._backend.engine
    assert await engine.read(fails, repeated) == 1
    assert tries == repeated + 1
    with pytest.raises(error):
        await engine.read(fails, 1000)
    assert tries == 2 * (repeated + 1)


async def terminate(database: str, most: int = 1000) -> int:
    """End up to so many of the stores' connections, chosen at random, from the server's side."""
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'jobstore'"
            " ORDER BY random() LIMIT %s) AS victims",
            [most],
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


async def test_connections_ended_by_the_server_at_random_lose_nothing_and_repeat_nothing(
    store: JobStore, database: str
) -> None:
    load = Load(store)
    dice = random.Random(7)  # noqa: S311 - a choice of victims

    async def attack() -> None:
        for _ in range(40):
            await terminate(database, dice.choice([1, 2, 1000]))
            await load.progress(dice.randrange(1, 60))

    await load.run(50, attack)
    await load.check()
    await eventually(lambda: no_open_transaction(database))


async def no_open_transaction(database: str) -> bool:
    return await open_transactions(database) == 0


# A server that crashes


@pytest.mark.parametrize("crashes", [2, pytest.param(5, marks=pytest.mark.full)])
async def test_a_server_that_crashes_under_load_loses_nothing_that_was_acknowledged(crashes: int) -> None:
    context = postgres.own_server()
    server = await asyncio.to_thread(context.__enter__)
    try:
        async with JobStore(server.url, migrate=True) as store:
            load = Load(store)
            counts = []

            async def attack() -> None:
                for _ in range(crashes):
                    await load.progress(300)
                    _, count = await asyncio.gather(asyncio.to_thread(server.crash_and_restart), store.jobs.count())
                    counts.append(count)
                await load.progress(300)

            await load.run(20, attack)
            assert len(counts) == crashes
            await load.check()
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


def keys(claims: list[Claim]) -> list[tuple[str, int]]:
    return [(claim.job_id, claim.attempt) for claim in claims]


# SQL of the user's own


async def test_what_looks_like_a_parameter_within_an_escaped_text_is_none(store: JobStore) -> None:
    [row] = await store.execute(r"SELECT E'it\'s :no, \\' AS text, :yes AS yes", {"yes": "1"})
    assert (row["text"], row["yes"]) == ("it's :no, \\", "1")


# Clocks


def opened_with(database: str, clock: Clock, host_clock: Clock) -> JobStore:
    """Return a store on a host whose clock is another than this one's."""
    store = JobStore(database, migrate=True, clock=clock)
    name = store.name
    store._database.engine = (  # type: ignore[method-assign]
        lambda clock, pool_size, durability: PostgresEngine(database, name, clock, pool_size, durability, host_clock)
    )
    return store


@pytest.mark.parametrize("skew", [-HOUR, HOUR])
async def test_a_host_whose_clock_is_wrong_writes_the_servers_time(database: str, skew: int) -> None:
    def wrong() -> int:
        return system_clock() + skew

    async with opened_with(database, wrong, wrong) as store:
        before = await servers_time(database)
        job = await enqueue(store)
        [claim] = await store.jobs.claim("worker", lease=30)
        after = await servers_time(database)
        assert before - 1000 <= to_milliseconds(job.created_at) <= after + 1000
        [attempt] = await store.jobs.attempts(claim.job_id)
        assert before + 29_000 <= to_milliseconds(attempt.lease_expires_at) <= after + 31_000
        async with JobStore(database) as right:
            assert await right.jobs.claim("thief") == []


async def servers_time(database: str) -> int:
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("skew", [0, -HOUR, HOUR])
async def test_an_injected_clock_is_left_as_it_is(database: str, clock: FakeClock, skew: int) -> None:
    async with opened_with(database, clock, lambda: system_clock() + skew) as store:
        job = await enqueue(store)
        assert to_milliseconds(job.created_at) == clock.now
        clock.advance(5)
        await store.jobs.claim("worker")
        job = await store.jobs.get(job.id)
        assert job.started_at is not None
        assert to_milliseconds(job.started_at) == clock.now


# Callers that are cancelled


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
    assert await open_transactions(database) == 0


async def someone_waits_aside(database: str) -> bool:
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND clock_timestamp() - query_start > interval '0.2 s'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return row[0] == 1


def backend_pid(_now: int) -> Operation[int]:
    row = yield from fetch_one("SELECT pg_backend_pid() AS pid")
    assert row is not None
    return int(row["pid"])


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


async def test_reads_whose_callers_were_cancelled_take_no_more_than_half_of_the_pool(database: str) -> None:
    async with JobStore(database, migrate=True, pool_size=4) as store:
        engine = store.jobs._backend.engine
        reads = [asyncio.ensure_future(engine.read(slow_read, 3600)) for _ in range(10)]
        await eventually(lambda: store.stats().pool.in_use == 4)
        for reading in reads:
            reading.cancel()
        await asyncio.wait(reads)
        assert await engine.read(backend_pid) > 0
        assert len(engine._abandoned) <= 2  # type: ignore[attr-defined]
