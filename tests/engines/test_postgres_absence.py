"""PostgreSQL that is away, or unaware that its client is: waiting is bounded, and nothing is done twice."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from psycopg import AsyncConnection

from jobstore import Claim, ConnectionLost, JobStore, ReadOnlyDatabase, StoreClosed
from jobstore.databases import find_database
from jobstore.engines import postgres as engine_module
from jobstore.operations import leasing
from jobstore.sql import Operation, execute, fetch_one, guarded
from jobstore.workers import AttemptEvent, JobContext, Worker
from tests import postgres
from tests.conformance.support import eventually

from .postgres_proxy import COMMIT, Proxy, When
from .postgres_support import (
    HOUR,
    SHORT,
    database,
    enqueue,
    keys,
    no_open_transaction,
    proxy,
    someone_waits_aside,
    store,
    stranger,
    terminate,
)

__all__ = ["database", "proxy", "store", "stranger"]  # fixtures


@pytest.fixture
async def impatient(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobStore]:
    """A store that waits for a lost server for a short time, behind a proxy."""
    monkeypatch.setattr(engine_module, "PATIENCE", SHORT)
    async with JobStore(proxy.url, migrate=True) as store:
        await store.execute("CREATE TABLE counted (number INTEGER)")
        yield store


def be_patient(store: JobStore) -> None:
    """From here on it waits for as long as a slow machine may take."""
    engine = store.jobs._backend.engine
    for part in (engine, engine._writer, engine._queue):  # type: ignore[attr-defined]
        part._patience = 3600.0


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
    works = [impatient.execute("INSERT INTO counted VALUES (1)") for _ in range(64)]  # each a batch of its own
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    lost = {id(outcome): outcome for outcome in outcomes if isinstance(outcome, ConnectionLost)}
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
    assert (
        sum(each.waited > SHORT / 2 for each in lost.values()) < 32
    )  # the first, and those whom a slow machine held up
    proxy.refuses = False
    be_patient(impatient)
    assert list(await impatient.execute("SELECT * FROM counted")) == []


async def test_whoever_came_later_still_waits_when_the_first_has_given_up(impatient: JobStore, proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut(b"BEGIN", "before")
    first = asyncio.ensure_future(enqueue(impatient))
    await eventually(lambda: proxy.refused > 0)
    be_patient(impatient)  # but not the first, which has begun to wait
    later = asyncio.ensure_future(enqueue(impatient))
    with pytest.raises(ConnectionLost):
        await first
    assert not later.done()
    proxy.refuses = False
    assert (await later).status == "idle"


async def test_reads_succeed_soon_after_a_long_absence_of_the_server(
    database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "POOL_TIMEOUT", 0.3)
    async with JobStore(proxy.url, migrate=True) as through:
        proxy.refuses = True
        await terminate(database)
        tries = 0
        while proxy.refused < 8:
            with pytest.raises(ConnectionLost, match="could not be reached"):
                await through.jobs.count()
            assert (through.stats().pool.open, through.stats().pool.in_use) == (0, 0)
            tries += 1
        assert tries <= 32  # whoever doubles his pauses would be at minutes by now
        proxy.refuses = False

        async def succeeds() -> bool:
            return await asyncio.gather(through.jobs.count(), return_exceptions=True) == [0]

        await eventually(succeeds)


# Connections whose client has vanished without the server's hearing of it


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("text", [b"INSERT INTO background_jobs", b"INSERT INTO store_writers", COMMIT])
async def test_a_session_that_hangs_on_a_vanished_client_holds_up_nobody(
    database: str, proxy: Proxy, text: bytes, moment: When
) -> None:
    async with JobStore(database, migrate=True):
        pass
    proxy.keeps_servers = True
    async with JobStore(proxy.url) as through, asyncio.timeout(50):
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
    async with JobStore(proxy.url) as through, asyncio.timeout(50):
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
    async with JobStore(proxy.url, migrate=True) as through, asyncio.timeout(50):
        lock = through.jobs._backend.engine._writer._lock  # type: ignore[attr-defined]
        async with await AsyncConnection.connect(database, autocommit=True) as busy:
            working = asyncio.ensure_future(busy.execute("SELECT pg_advisory_lock(%s), pg_sleep(3600)", [lock]))
            await eventually(lambda: is_held(database, lock))
            await terminate(database)
            with pytest.raises(ConnectionLost, match="not known"):
                await enqueue(through)
            be_patient(through)
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


async def test_a_worker_outlives_a_server_that_is_away_for_longer_than_a_caller_waits(
    impatient: JobStore, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(impatient)
    worker.handles("task")(lambda job: job.prompt)
    first = await enqueue(impatient, task_type="task")
    running = asyncio.ensure_future(worker.run())
    await impatient.jobs.wait(first.id, timeout=60)
    proxy.refuses = True
    proxy.cut(b"BEGIN", *["before"] * 20)  # not only of a read that is on its way
    impatient.jobs._backend.engine.work.notify()  # so that it claims
    await eventually(lambda: "cannot claim, trying again" in caplog.text)
    assert not running.done()
    be_patient(impatient)
    proxy.forget_cuts()
    proxy.refuses = False
    second = await enqueue(impatient, task_type="task")
    assert (await impatient.jobs.wait(second.id, timeout=60)).status == "completed"
    worker.stop()
    await running


async def test_a_worker_whose_network_was_cut_finds_out_that_its_lease_was_lost_meanwhile(
    impatient: JobStore, database: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(impatient, lease=0.3, concurrency=1)  # or it might be the other itself
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


async def test_a_worker_waits_while_the_server_takes_no_writes(
    store: JobStore, stranger: AsyncConnection[tuple[object, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """As one does that another has replaced, until the clients are led to the new one."""
    worker = Worker(store)
    worker.handles("task")(lambda job: job.prompt)
    job = await enqueue(store)
    await stranger.set_autocommit(True)

    async def set_read_only(value: str) -> None:
        name = stranger.info.dbname
        await stranger.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}".encode())
        await stranger.execute(  # and wait until they have ended, for what they began was read-only, or was not
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'jobstore'"
        )

    try:
        await set_read_only("on")
        running = asyncio.ensure_future(worker.run())
        await eventually(lambda: "cannot claim, trying again: the database takes no writes" in caplog.text)
    finally:
        await set_read_only("off")
    assert (await store.jobs.wait(job.id, 60)).response == "p"
    worker.stop()
    await running


@pytest.fixture
def servers(public_folder: Path) -> Iterator[tuple[postgres.OwnServer, Path]]:
    """Return a server and the folder of another's socket, which follows it and takes no writes."""
    with postgres.own_server() as primary:
        find_database(primary.url).migrator().run()
        with primary.standby(public_folder) as standby:
            yield primary, standby


async def test_a_store_that_was_led_to_a_standby_says_so_and_finds_back(
    servers: tuple[postgres.OwnServer, Path], tmp_path: Path
) -> None:
    primary, standby = servers
    address = tmp_path / ".s.PGSQL.5432"

    async def lead_to(folder: Path) -> None:
        address.unlink(missing_ok=True)
        address.symlink_to(folder / address.name)
        await terminate(primary.url)

    await lead_to(primary.data)
    async with JobStore(f"postgresql://postgres@/postgres?host={tmp_path}") as store:
        acts = [lambda: enqueue(store), lambda: store.execute("CREATE TABLE IF NOT EXISTS counted (number INTEGER)")]
        for last in acts:
            await lead_to(standby)
            for act in (*acts, last):
                with pytest.raises(ReadOnlyDatabase, match="connect to the primary"):
                    await act()
            await lead_to(primary.data)
            await last()
        assert await store.jobs.count() == 1


async def test_of_several_hosts_the_one_that_takes_writes_is_used(fresh_database: str) -> None:
    read_only = "-cdefault_transaction_read_only=on"
    async with Proxy(fresh_database).listening() as standby, Proxy(fresh_database).listening() as primary:
        primary.hides = read_only.encode()
        parts, (_, _, other) = urlsplit(standby.url), urlsplit(primary.url).netloc.rpartition("@")
        query = f"{parts.query}&options={quote(read_only)}"
        url = urlunsplit(parts._replace(netloc=f"{parts.netloc},{other}", query=query))
        async with JobStore(url, migrate=True) as store:
            await enqueue(store)
            standby.hides, primary.hides = primary.hides, b""  # they change places
            await terminate(fresh_database)
            await enqueue(store)
            assert await store.jobs.count() == 2
