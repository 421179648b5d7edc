"""Jobs that come in past the store: from a dump, or from SQL whose search_path leads elsewhere."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from jobstore import JobStore
from tests import postgres
from tests.postgres import OwnServer, in_schema

INSERT = """
    INSERT INTO {}.background_jobs (id, prompt, task_type, api_type, status, run_at, created_at, updated_at)
    VALUES ('id', 'p', '{}', 'api', 'idle', 0, 0, 0)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with postgres.own_server() as server:
        yield server


@pytest.fixture
def full(server: OwnServer) -> Iterator[str]:
    """Return the URL of a database in whose schema `jobs` a store has two jobs, one of them done."""
    with postgres.new_database(server.url) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA jobs")
        asyncio.run(fill(in_schema(url, "jobs")))
        yield url


@pytest.fixture
def empty(server: OwnServer) -> Iterator[str]:
    with postgres.new_database(server.url) as url:
        yield url


async def fill(url: str) -> None:
    async with JobStore(url, migrate=True) as store:
        await store.jobs.enqueue("first", task_type="done", api_type="api")
        [claim] = await store.jobs.claim("worker")
        await store.jobs.complete(claim, "answer")
        await store.jobs.enqueue("second", task_type="waiting", api_type="api")


async def claimed(url: str, *, migrate: bool = False) -> list[tuple[str, str]]:
    """Return the type and prompt of all jobs that can be claimed."""
    async with JobStore(url, migrate=migrate) as store:
        claims = await store.jobs.claim("worker", limit=10)
        for claim in claims:
            await store.jobs.complete(claim, "answer")
        return sorted((claim.job.task_type, claim.prompt) for claim in claims)


def copy(programs: Path, source: str, target: str, *options: str) -> None:
    """Run pg_dump and feed psql with what it writes."""
    dump = subprocess.run([programs / "pg_dump", *options, source], capture_output=True, check=True)
    restore = [programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", target]
    done = subprocess.run(restore, input=dump.stdout, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_dump_restores_a_store_that_works(server: OwnServer, full: str, empty: str) -> None:
    copy(server.programs, full, empty)
    restored = in_schema(empty, "jobs")

    async def look() -> None:
        async with JobStore(restored) as store:
            assert await store.jobs.count(status="completed") == 1
            await store.jobs.enqueue("third", task_type="new", api_type="api")

    asyncio.run(look())
    assert asyncio.run(claimed(restored)) == [("new", "third"), ("waiting", "second")]


def test_a_dump_of_the_jobs_alone_brings_their_lanes_along(server: OwnServer, full: str, empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA jobs")
    target = in_schema(empty, "jobs")
    assert asyncio.run(claimed(target, migrate=True)) == []
    copy(server.programs, full, empty, "--data-only", "--table=jobs.background_jobs")
    assert asyncio.run(claimed(target)) == [("waiting", "second")]


@pytest.mark.parametrize("path", ["public", "''", "other, jobs"])
def test_jobs_of_ones_own_sql_get_their_lane_whatever_the_search_path(full: str, path: str) -> None:
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA other")
        connection.execute("CREATE TABLE other.lanes (task_type TEXT, api_type TEXT)")
        connection.execute(f"SET search_path TO {path}")
        connection.execute(INSERT.format("jobs", "new"))
        assert connection.execute("SELECT count(*) FROM other.lanes").fetchone() == (0,)
        connection.execute("UPDATE jobs.background_jobs SET task_type = 'newer' WHERE id = 'id'")
    assert asyncio.run(claimed(in_schema(full, "jobs"))) == [("newer", "p"), ("waiting", "second")]


def test_a_schema_may_be_renamed(full: str) -> None:
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute("ALTER SCHEMA jobs RENAME TO work")
        connection.execute(INSERT.format("work", "new"))
    assert asyncio.run(claimed(in_schema(full, "work"))) == [("new", "p"), ("waiting", "second")]
