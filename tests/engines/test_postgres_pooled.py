"""PostgreSQL behind a pooler that gives each transaction another session: nothing is left in one, nothing expected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from jobstore import JobStore, SchemaMismatch
from jobstore.databases import find_database
from jobstore.engines.base import Request
from jobstore.migrate import load_steps
from jobstore.migrate.postgres import PostgresMigrator
from jobstore.sql import Operation, fetch_one
from tests.postgres import in_schema

from .postgres_proxy import Proxy


@pytest.fixture
async def pooler(fresh_database: str) -> AsyncIterator[Proxy]:
    """Pass for a pooler: `tests/with_pgbouncer.py` runs the whole contract behind a real one."""
    async with Proxy(fresh_database).listening() as proxy:
        proxy.pools = True
        yield proxy


def settings(_now: int) -> Operation[tuple[str, str, int]]:
    row = yield from fetch_one(
        "SELECT current_setting('statement_timeout') AS timeout, current_setting('application_name') AS name,"
        " (SELECT count(*) FROM pg_prepared_statements) AS prepared"
    )
    assert row is not None
    return row["timeout"], row["name"], row["prepared"]


async def test_each_transaction_has_its_limits_and_no_session_keeps_anything(pooler: Proxy) -> None:
    async with JobStore(pooler.url, migrate=True) as store:
        engine = store.jobs._backend.engine
        for _ in range(10):
            await store.jobs.enqueue("p", task_type="t", api_type="a")
            assert await store.jobs.claim("worker") != []
            assert await engine.read(settings) == ("1min", "jobstore", 0)
            assert await engine.write(Request(settings, ())) == ("1min", "jobstore", 0)
        async with engine.snapshot() as snapshot:
            assert await snapshot.read(settings) == ("1min", "jobstore", 0)
        async with engine._readers.connection() as connection:  # type: ignore[attr-defined]
            cursor = await connection.execute("SHOW statement_timeout")
            assert await cursor.fetchone() == {"statement_timeout": "0"}


async def test_other_processes_are_heard_without_a_session_that_listens(pooler: Proxy, fresh_database: str) -> None:
    async with JobStore(pooler.url, migrate=True) as through, JobStore(fresh_database) as direct:
        seen = await through.jobs.wake()
        await direct.jobs.enqueue("p", task_type="t", api_type="a")
        async with asyncio.timeout(60):
            assert await through.jobs.wake(since=seen) != seen
        listening = "SELECT count(*) AS found FROM pg_stat_activity WHERE query ~ '^LISTEN'"
        [row] = await direct.execute(f"{listening} AND datname = current_database()")
        assert row["found"] == 1  # the direct one's


def test_migrations_prepare_nothing(fresh_database: str, tmp_path: Path) -> None:
    """Before each step the same statements are run, in a session that need not be the last one's."""
    nothing_prepared = "DO $$ BEGIN ASSERT (SELECT count(*) = 0 FROM pg_prepared_statements); END $$;"
    for number in range(1, 12):
        (tmp_path / f"{number:04}_step.sql").write_text(nothing_prepared)
    assert len(PostgresMigrator(fresh_database, "the database", load_steps(tmp_path)).run().applied) == 11


async def test_a_pooler_that_keeps_the_options_to_itself_is_found_out(pooler: Proxy, fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    url = in_schema(pooler.url, "mine")
    async with JobStore(url, migrate=True) as store:
        assert await store.execute("SELECT current_schema() AS schema") == [{"schema": "mine"}]
    pooler.hides = b"-csearch_path=mine"
    with pytest.raises(
        SchemaMismatch, match=r'has the search_path "\$user", public, not the one of its options.*ALTER'
    ):
        await JobStore(url).open()
    with pytest.raises(SchemaMismatch, match="not the one of its options"):
        await asyncio.to_thread(lambda: find_database(url).migrator().status())


@pytest.mark.parametrize(
    "options",
    [
        "-csearch_path%3Dmine",
        "-c%20search_path%3Dmine,public",
        "--search-path%3Dmine",
        "-csearch_path%3Dmine,%5C%20public",
        "-csearch_path%3Dother%20-c%20statement_timeout%3D5000%20-cSEARCH_PATH%3Dmine",
        "-cstatement_timeout%3D5000",
    ],
)
async def test_options_are_understood_as_the_server_does(fresh_database: str, options: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA mine")
    separator = "&" if "?" in fresh_database else "?"
    async with JobStore(f"{fresh_database}{separator}options={options}", migrate=True) as store:
        [row] = await store.execute("SELECT current_schema() AS schema")
        assert row["schema"] == ("mine" if "mine" in options else "public")
