"""What tests of the PostgreSQL engine share: a database, ways to harm its connections, and callers that remember."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import psycopg
import pytest
from psycopg import AsyncConnection

from jobstore import Claim, Job, JobStore
from jobstore.engines import postgres_listener as listener_module
from jobstore.sql import Operation, fetch_one
from tests import postgres
from tests.conformance.support import eventually

from .postgres_proxy import Proxy

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
        end = time.monotonic() + 60
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
async def proxy(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    monkeypatch.setattr(listener_module, "POLL_LISTENING", 3600)  # or a look of the store's own might be what is cut
    async with Proxy(database).listening() as proxy:
        yield proxy


def enqueue(store: JobStore, **fields: object) -> Awaitable[Job]:
    return store.jobs.enqueue("p", **{"task_type": "task", "api_type": "api", **fields})  # type: ignore[arg-type]


async def enqueue_many(store: JobStore, count: int) -> list[Job]:
    return await asyncio.gather(*(enqueue(store) for _ in range(count)))


def keys(claims: list[Claim]) -> list[tuple[str, int]]:
    return [(claim.job_id, claim.attempt) for claim in claims]


async def lock(stranger: AsyncConnection[tuple[object, ...]], jobs: list[str]) -> None:
    await stranger.execute("SELECT 1 FROM background_jobs WHERE id = ANY(%s) FOR UPDATE", [jobs])


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


async def no_open_transaction(database: str) -> bool:
    return await open_transactions(database) == 0


async def sessions(database: str) -> int:
    """Return how many connections of stores there are."""
    async with await AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobstore'"
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


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


async def cancelled_by_task(work: Awaitable[object], after: float) -> None:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.wait([task])


async def cancelled_by_scope(work: Awaitable[object], after: float) -> None:
    with anyio.move_on_after(after):
        await work


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
