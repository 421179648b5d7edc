"""PostgreSQL schemas of any name."""

from __future__ import annotations

import pytest
from psycopg import AsyncConnection

from jobstore import JobStore, NewJob, drive
from jobstore.engines import postgres_listener as listener_module
from jobstore.operations import jobs
from tests import postgres

from .postgres_support import HOUR, enqueue


async def test_what_happens_in_a_schema_of_the_longest_name_is_heard(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "POLL_LISTENING", HOUR)  # which would find it as well
    name = "m" * 63
    async with await AsyncConnection.connect(fresh_database, autocommit=True) as connection:
        await connection.execute(f"CREATE SCHEMA {name}".encode())
    url = postgres.in_schema(fresh_database, name)
    new = NewJob(prompt="p", task_type="task", api_type="api")
    async with JobStore(url, migrate=True) as store, JobStore(url) as other:
        seen = await other.jobs.wake()
        await enqueue(store)
        seen, before = await other.jobs.wake(since=seen), seen
        assert seen != before
        async with await AsyncConnection.connect(url) as connection:
            await drive(connection, jobs.enqueue_new(store.jobs._backend.engine.clock(), new))
        assert await other.jobs.wake(since=seen) != seen
        assert await store.jobs.count() == 2
