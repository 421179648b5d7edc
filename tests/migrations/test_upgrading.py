"""A store that an earlier version made gets to the schema of this one, with all that it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobstore import JobStore, MigrationRequired, TextsPruned
from jobstore.databases import find_database
from jobstore.migrate import POSTGRES_STEPS, SQLITE_STEPS, Migrator, Result, load_steps
from jobstore.migrate.postgres import PostgresMigrator
from jobstore.operations.promotion import TABLES

ROW = """
    INSERT INTO background_jobs (id, task_type, api_type, status, run_at, created_at, updated_at, finished_at, prompt)
    VALUES ('old', 't', 'a', 'canceled', 1, 1, 1, 1, 'an old prompt')
"""


def migrate(database: Path | str, steps: int | None) -> Result:
    """Apply the first steps, or all."""
    if isinstance(database, Path):
        return Migrator(database, load_steps(SQLITE_STEPS)[:steps]).run()
    name = find_database(database).name
    return PostgresMigrator(database, name, load_steps(POSTGRES_STEPS)[:steps]).run()


def execute(database: Path | str, sql: str) -> None:
    import sqlite3
    from contextlib import closing

    import psycopg

    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(sql)
    else:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(sql.encode())


@pytest.fixture(params=["sqlite", "postgres"])
def first(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Return a database of the first step alone, with a job in it."""
    database = tmp_path / "jobs.db" if request.param == "sqlite" else request.getfixturevalue("fresh_database")
    assert migrate(database, 1).applied == ["0001_initial_schema"]
    execute(database, ROW)
    return database  # type: ignore[no-any-return]


def test_a_store_of_the_first_step_alone_gets_to_the_present_schema(first: Path | str) -> None:
    async def opened() -> None:
        with pytest.raises(MigrationRequired, match="0002_retention"):
            await JobStore(first).open()
        done = await asyncio.to_thread(migrate, first, None)
        assert done.applied[0] == "0002_retention"
        async with JobStore(first) as store:
            job = await store.jobs.get("old")
            assert (job.prompt, job.texts_pruned_at) == ("an old prompt", None)
            for table in TABLES:
                await store.execute(f"SELECT * FROM {table.name}")
            await store.retention.set("texts", removes="texts", older_than=0)
            assert await store.retention.apply() == {"texts": 1}
            with pytest.raises(TextsPruned):
                await store.jobs.read_prompt("old")

    asyncio.run(opened())
