"""PostgreSQL under attack: rows locked by strangers, connections cut, a server that crashes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from psycopg import AsyncConnection

from jobstore import ConnectionLost, DatabaseBusy, DatabaseError, Job, JobStore, NewJob, StatementFailed
from jobstore.engines import postgres as engine_module
from jobstore.engines import postgres_listener as listener_module
from jobstore.engines.base import Request
from jobstore.engines.postgres import ASIDE
from jobstore.models import Text
from jobstore.operations import jobs
from jobstore.repositories.backend import new_id
from jobstore.repositories.job_queries import OVERDUE_SLEEP
from jobstore.sql import Operation, execute, fetch_one, guarded
from jobstore.testing import FakeClock
from tests import postgres
from tests.conformance.support import eventually

from .postgres_proxy import COMMIT, Proxy, When
from .postgres_support import (
    SHORT,
    Load,
    backend_pid,
    database,
    enqueue,
    enqueue_many,
    lock,
    no_open_transaction,
    proxy,
    store,
    stranger,
    terminate,
)

__all__ = ["database", "proxy", "store", "stranger"]  # fixtures


def prune_keyed(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM background_jobs WHERE idempotency_key = 'once'")


async def test_a_job_that_is_pruned_while_its_key_is_used_again_is_made_anew(store: JobStore, database: str) -> None:
    first = await enqueue(store, idempotency_key="once")
    new = NewJob(prompt="p", task_type="task", api_type="api", idempotency_key="once")
    pruned = False

    @guarded
    def enqueue_as_it_is_pruned(now: int) -> Operation[Job]:
        nonlocal pruned
        operation = jobs.enqueue(now, new_id(), new, Text("p", size=1))
        result = None
        while True:
            try:
                statement = operation.send(result)
            except StopIteration as stop:
                return cast("Job", stop.value)
            if statement.sql.startswith("SELECT") and not pruned:
                pruned = True
                prune_keyed(database)
            result = yield statement

    second = await store.jobs._backend.write(enqueue_as_it_is_pruned)
    assert pruned
    assert second.id != first.id
    assert (await store.jobs.get(second.id)).idempotency_key == "once"


# Rows that someone else has locked


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
        engine: Any = store.jobs._backend.engine
        new_writer, waits = engine._new_writer, []

        def noted(lock_timeout: float) -> object:
            waits.append(lock_timeout)
            return new_writer(lock_timeout)

        monkeypatch.setattr(engine, "_new_writer", noted)
        works = [store.jobs.complete(claim, "late") for claim in claims]
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DatabaseBusy}
        assert len(waits) == 3 * ASIDE
        assert sum(waits) < 2 * ASIDE * 2.0  # the last turns hardly wait any more


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


async def test_what_changes_nothing_wakes_nobody(
    database: str,
    stranger: AsyncConnection[tuple[object, ...]],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_module, "POLL_LISTENING", 3600)  # a look for what others did wakes as well
    async with (
        JobStore(database, migrate=True, clock=clock) as store,
        await AsyncConnection.connect(database, autocommit=True) as listening,
    ):
        expired = await enqueue(store)
        await store.jobs.claim("gone", lease=30)
        await lock(stranger, [expired.id])
        clock.advance(31)
        await listening.execute('LISTEN "jobstore:public"')
        seen = await store.jobs.wake()
        assert await store.jobs.claim("worker") == []  # though it locks the attempt, and then passes over it
        await store.execute("SELECT 1")
        assert await store.jobs.wake() == seen
        await store.kv.set("theme", "dark")
        heard = [told.payload.partition(":")[2] async for told in listening.notifies(stop_after=1)]
    assert heard == ["change"]


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
async def test_what_a_query_s_function_writes_is_carried_out_once_though_its_commit_is_cut(
    store: JobStore, proxy: Proxy, moment: When
) -> None:
    await store.execute("CREATE TABLE counted AS SELECT 0 AS number")
    await store.execute(
        "CREATE FUNCTION count_up() RETURNS integer LANGUAGE sql AS"
        " 'UPDATE counted SET number = number + 1 RETURNING number'"
    )
    async with JobStore(proxy.url) as through:
        proxy.cut(COMMIT, moment)
        assert list(map(dict, await through.execute("SELECT count_up() AS number"))) == [{"number": 1}]
    assert proxy.cuts_left == 0
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
        with pytest.raises(ConnectionLost, match="not known, look before you do it again") as unknown:
            await through.jobs.enqueue("long " * 20_000, task_type="task", api_type="api")
        assert unknown.value.waited > 0
        assert proxy.cuts_left == 0
    [job] = (await store.jobs.list()).items
    assert await store.jobs.read_prompt(job.id) == "long " * 20_000


async def test_reads_go_on_when_all_reading_connections_were_lost(store: JobStore, database: str) -> None:
    await enqueue(store)
    while store.stats().pool.open <= 3:  # a busy machine answers with few sooner than it makes more
        await asyncio.gather(*(store.jobs.count() for _ in range(50)))
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


# A server that crashes


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[postgres.OwnServer]:
    for patience in ("PATIENCE", "POOL_TIMEOUT"):  # on a busy machine, a restart takes its time
        monkeypatch.setattr(engine_module, patience, 10 * getattr(engine_module, patience))
    with postgres.own_server() as server:
        yield server


@pytest.mark.parametrize("crashes", [2, pytest.param(5, marks=pytest.mark.full)])
async def test_a_server_that_crashes_under_load_loses_nothing_that_was_acknowledged(
    own_server: postgres.OwnServer, crashes: int
) -> None:
    async with JobStore(own_server.url, migrate=True) as store:
        load = Load(store)
        counts = []

        async def attack() -> None:
            for _ in range(crashes):
                await load.progress(300)
                _, count = await asyncio.gather(asyncio.to_thread(own_server.crash_and_restart), store.jobs.count())
                counts.append(count)
            await load.progress(300)

        await load.run(20, attack)
        assert len(counts) == crashes
        await load.check()


async def test_a_commit_whose_answer_is_lost_in_a_crash_is_made_exactly_once(own_server: postgres.OwnServer) -> None:
    """Though the server gives the number of a transaction that the crash undid to another one."""
    moments: list[When] = ["before", "during", "after"]
    async with Proxy(own_server.url).listening() as proxy, JobStore(proxy.url, migrate=True) as store:
        await store.execute("CREATE TABLE numbers (number INTEGER)")
        for made, moment in enumerate(moments, 1):
            proxy.cut(COMMIT, moment)
            proxy.refuses = True
            refused = proxy.refused
            enqueueing = asyncio.ensure_future(enqueue(store))
            await eventually(lambda refused=refused: proxy.refused > refused)  # type: ignore[misc]
            await asyncio.to_thread(own_server.crash_and_restart)
            async with await AsyncConnection.connect(own_server.url, autocommit=True) as other:
                for number in range(10):
                    await other.execute("INSERT INTO numbers VALUES (%s)", [number])
            proxy.refuses = False
            await enqueueing
            assert await store.jobs.count() == made
        assert proxy.cuts_left == 0


# SQL of the user's own


@pytest.mark.parametrize("state", ["55000", "54001", "53200", "57014", "P0001"])
async def test_an_error_on_a_connection_that_lives_is_not_told_as_a_lost_one(store: JobStore, state: str) -> None:
    pid = await store.run(backend_pid)
    with pytest.raises(StatementFailed):
        await store.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
    assert await store.run(backend_pid) == pid


async def test_what_looks_like_a_parameter_within_an_escaped_text_is_none(store: JobStore) -> None:
    [row] = await store.execute(r"SELECT E'it\'s :no, \\' AS text, :yes AS yes", {"yes": "1"})
    assert (row["text"], row["yes"]) == ("it's :no, \\", "1")


@pytest.mark.parametrize("state", ["40001", "40P01"])
@pytest.mark.parametrize("declared", [guarded, lambda it: it])
async def test_a_transaction_that_loses_against_others_is_tried_again_but_not_for_ever(
    database: str, monkeypatch: pytest.MonkeyPatch, state: str, declared: Callable[[object], Callable[..., object]]
) -> None:
    tries = 0

    @declared
    def loses(_now: int, times: int) -> Operation[int]:
        nonlocal tries
        tries += 1
        yield from execute("INSERT INTO numbers VALUES (:number)", number=tries)
        if tries <= times:
            yield from execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")
        return tries

    async with JobStore(database, migrate=True) as store:
        await store.execute("CREATE TABLE numbers (number INTEGER)")
        done = await store.run(loses, 5)  # type: ignore[arg-type]
        assert list(map(dict, await store.execute("SELECT number FROM numbers"))) == [{"number": done}]
    monkeypatch.setattr(engine_module, "PATIENCE", SHORT)
    async with JobStore(database) as store:
        started = time.monotonic()
        with pytest.raises(DatabaseBusy):
            await store.run(loses, 10**9)  # type: ignore[arg-type]
        assert time.monotonic() - started >= SHORT


async def test_a_statement_that_takes_too_long_is_given_up_unless_its_operation_says_otherwise(store: JobStore) -> None:
    def sleep(_now: int, allowed: str, seconds: float) -> Operation[str]:
        yield from fetch_one("SELECT set_config('statement_timeout', :allowed, true)", allowed=allowed)
        row = yield from fetch_one(
            "SELECT current_setting('statement_timeout') AS allowed, pg_sleep(:seconds)", seconds=seconds
        )
        assert row is not None
        return str(row["allowed"])

    with pytest.raises(StatementFailed, match=r"statement_timeout .* set_config"):
        await store.run(sleep, "1s", 3600)
    assert await store.run(sleep, "10min", 0) == "10min"


async def test_the_server_gives_up_a_read_that_takes_too_long(store: JobStore) -> None:
    def ask(_now: int) -> Operation[str]:
        row = yield from fetch_one("SELECT current_setting('statement_timeout') AS timeout")
        assert row is not None
        return str(row["timeout"])

    engine = store.jobs._backend.engine
    assert await engine.read(ask) == await engine.write(Request(ask, ())) == "1min"
