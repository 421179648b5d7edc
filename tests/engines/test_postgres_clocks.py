"""Hosts whose clocks are wrong: times and leases are the server's."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection

from jobstore import JobStore
from jobstore.clock import Clock, system_clock, to_milliseconds
from jobstore.engines import postgres_listener as listener_module
from jobstore.engines.postgres import PostgresEngine
from jobstore.testing import FakeClock
from tests.conformance.support import eventually

from .postgres_support import (
    HOUR,
    database,
    enqueue,
    proxy,
    store,
    stranger,
)

__all__ = ["database", "proxy", "store", "stranger"]  # fixtures


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


async def test_a_host_whose_clock_is_set_anew_follows_the_servers_time_before_long(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "POLL_LISTENING", 0.01)
    skew = HOUR

    def set_anew() -> int:
        return system_clock() + skew

    async with opened_with(database, set_anew, set_anew) as store:
        for skew in (0, -HOUR):  # noqa: B007 - the clock reads it
            await eventually(lambda: abs(store.jobs._backend.engine.clock() - system_clock()) < 1000)
            assert to_milliseconds((await enqueue(store)).created_at) <= await servers_time(database) + 1000


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
