"""Vacuuming a schema of PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from jobstore import InvalidArgument, JobStore, StatementFailed


@pytest.fixture
async def on_server(fresh_database: str) -> AsyncIterator[JobStore]:
    async with JobStore(fresh_database, migrate=True) as store:
        yield store


async def test_each_table_is_vacuumed_and_analyzed(on_server: JobStore, fresh_database: str) -> None:
    job = await on_server.jobs.enqueue("p", task_type="t", api_type="a")
    await on_server.jobs.cancel(job.id)
    await on_server.retention.set("x", keep=1)
    done = await on_server.vacuum()
    assert done.after.total > 300_000  # tables and indexes of one page each
    async with await psycopg.AsyncConnection.connect(fresh_database) as connection:
        cursor = await connection.execute(
            "SELECT relname, reltuples FROM pg_class WHERE relname IN ('background_jobs', 'retention_policies')"
        )
        counted = dict(await cursor.fetchall())
    assert counted["background_jobs"] == counted["retention_policies"] == 1
    assert (await on_server.vacuum()).after.free == 0


async def test_overwriting_is_refused_before_anything_is_deleted(on_server: JobStore) -> None:
    job = await on_server.jobs.enqueue("p", task_type="t", api_type="a")
    await on_server.jobs.cancel(job.id)
    for call in (on_server.vacuum(secure=True), on_server.jobs.prune(older_than=0, secure=True)):
        with pytest.raises(InvalidArgument, match="PostgreSQL cannot overwrite"):
            await call
    assert await on_server.jobs.count() == 1


async def test_a_vacuum_that_fails_says_why(on_server: JobStore) -> None:
    await on_server.execute("DROP TABLE pauses")
    with pytest.raises(StatementFailed, match="pauses"):
        await on_server.vacuum()
