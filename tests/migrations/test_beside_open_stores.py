"""A migration beside open stores: they stop at their next write, and nothing is written by old rules."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobstore import DatabaseBusy, JobStatus, JobStore, MigrationRequired, SchemaMismatch
from jobstore.aio import in_thread
from jobstore.databases import find_database
from jobstore.engines import postgres
from jobstore.migrate import POSTGRES_STEPS, SQLITE_STEPS, Migrator, Step, load_steps
from jobstore.migrate.postgres import PostgresMigrator
from jobstore.sql import Operation, execute, fetch_all
from jobstore.workers import JobContext, Worker
from tests.processes.support import finish, spawn

LANE: dict[str, Any] = {"task_type": "task", "api_type": "api"}
SCHEMA_STEP = "ALTER TABLE background_jobs ADD COLUMN extra TEXT;"
DATA_STEP = "UPDATE background_jobs SET priority = 7;"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, database: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("fresh_database")
        return server
    return str(database)


@pytest.fixture
def migrate_further(url: str, tmp_path: Path) -> Callable[[str], None]:
    """Apply a step that only a newer version knows, as that version's command would."""

    def run(sql: str) -> None:
        folder = tmp_path / "steps"
        shutil.copytree(POSTGRES_STEPS if "://" in url else SQLITE_STEPS, folder)
        (folder / "0999_newer.sql").write_text(sql)
        assert migrator(url, load_steps(folder)).run().applied == ["0999_newer"]

    return run


def migrator(url: str, steps: list[Step]) -> Migrator | PostgresMigrator:
    return PostgresMigrator(url, "jobs", steps) if "://" in url else Migrator(Path(url), steps)


@pytest.mark.parametrize("sql", [SCHEMA_STEP, DATA_STEP], ids=["schema", "data"])
async def test_an_open_store_writes_nothing_after_a_migration(
    url: str, migrate_further: Callable[[str], None], sql: str
) -> None:
    async with JobStore(url, migrate=True) as store:
        await store.jobs.enqueue("before", **LANE)
        [claim] = await store.jobs.claim("worker")
        await in_thread(migrate_further, sql)
        for write in (
            lambda: store.jobs.enqueue("after", **LANE),
            lambda: store.jobs.complete(claim, "answer"),
            lambda: store.jobs.heartbeat([claim]),
            lambda: store.execute("UPDATE background_jobs SET priority = 1"),  # not guarded: alone, on PostgreSQL
            lambda: store.jobs.enqueue("after", **LANE),
        ):
            with pytest.raises(SchemaMismatch, match="newer jobstore"):
                await write()
        [job] = (await store.jobs.list()).items  # to look on is allowed
        assert (await store.jobs.read_prompt(job.id), job.status) == ("before", JobStatus.RUNNING)


async def test_writes_under_way_either_come_before_the_migration_or_are_refused(
    url: str, migrate_further: Callable[[str], None]
) -> None:
    async with JobStore(url, migrate=True) as store:
        written = refused = 0

        async def write() -> None:
            nonlocal written, refused
            while not refused:
                try:
                    await store.jobs.enqueue("p", **LANE)
                    written += 1
                except SchemaMismatch:
                    refused += 1

        writers = [asyncio.create_task(write()) for _ in range(20)]
        while written < 50:
            await asyncio.sleep(0)
        await in_thread(migrate_further, "UPDATE background_jobs SET priority = 7;")
        await asyncio.gather(*writers)
        assert refused == len(writers)
        assert await store.jobs.count() == written
        rows = await store.jobs._backend.engine.read(_count_by_priority)
        assert rows == {7: written}  # none was written after the step


def _count_by_priority(_now: int) -> Operation[dict[int, int]]:
    rows = yield from fetch_all("SELECT priority, count(*) AS jobs FROM background_jobs GROUP BY priority")
    return {row["priority"]: row["jobs"] for row in rows}


async def test_steps_that_are_missing_by_now_are_named_with_the_command(url: str) -> None:
    """As after an older dump was put back under an open store."""
    async with JobStore(url, migrate=True) as store:
        async with JobStore(url) as other:
            await other.run(_put_back_an_older_schema)
        with pytest.raises(MigrationRequired, match=r"python -m jobstore\.migrate") as caught:
            await store.jobs.enqueue("p", **LANE)
        assert caught.value.pending


def _put_back_an_older_schema(_now: int) -> Operation[None]:
    yield from execute("CREATE TABLE mine (x BIGINT)")
    yield from execute("DELETE FROM migrations")


async def test_tables_of_a_users_own_stop_nobody(url: str) -> None:
    async with JobStore(url, migrate=True) as store, JobStore(url) as other:
        await store.jobs.enqueue("p", **LANE)
        await other.execute("CREATE TABLE mine (x BIGINT)")
        await store.jobs.enqueue("p", **LANE)
        await store.execute("INSERT INTO mine VALUES (1)")
        assert await store.jobs.count() == 2


async def test_a_worker_stops_and_says_why(url: str, migrate_further: Callable[[str], None]) -> None:
    async with JobStore(url, migrate=True) as store:
        worker = Worker(store, concurrency=1)
        began, go_on = asyncio.Event(), asyncio.Event()

        @worker.handles("task")
        async def handle(_job: JobContext) -> str:
            began.set()
            await go_on.wait()
            return "answer by old rules"

        await store.jobs.enqueue("p", **LANE)
        running = asyncio.create_task(worker.run())
        await began.wait()
        await in_thread(migrate_further, SCHEMA_STEP)
        go_on.set()
        with pytest.raises(SchemaMismatch, match="newer jobstore"):
            await running
        [job] = (await store.jobs.list()).items
        assert job.status is JobStatus.RUNNING  # until its lease ends, and a worker of the new version has it


async def test_a_store_of_a_newer_schema_is_not_opened(url: str, migrate_further: Callable[[str], None]) -> None:
    await in_thread(lambda: find_database(url).migrator().run())
    await in_thread(migrate_further, SCHEMA_STEP)
    with pytest.raises(SchemaMismatch, match=r"newer jobstore \(0999_newer\): install that version"):
        await JobStore(url).open()


def test_two_migrators_at_once_apply_each_step_once(url: str) -> None:
    code = """
        import sys
        from jobstore.databases import find_database
        print(",".join(find_database(sys.argv[1]).migrator().run().applied))
    """
    outputs = [finish(process) for process in [spawn(code, url) for _ in range(2)]]
    assert [code for code, _, _ in outputs] == [0] * 2, outputs
    applied = [name for _, output, _ in outputs for name in output.strip().split(",") if name]
    # The lock is taken anew for each step, so that the two may take turns.
    assert sorted(applied) == [step.name for step in load_steps(POSTGRES_STEPS if "://" in url else SQLITE_STEPS)]


async def test_on_postgresql_writes_wait_for_a_migration_that_runs(
    fresh_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "PATIENCE", 0.5)
    async with JobStore(fresh_database, migrate=True) as store:
        await store.jobs.enqueue("before", **LANE)
        folder = tmp_path / "steps"
        shutil.copytree(POSTGRES_STEPS, folder)
        (folder / "0999_newer.sql").write_text("SELECT 1;")
        announced, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def announce(_step: Step) -> None:
            loop.call_soon_threadsafe(announced.set)
            assert go_on.wait(120)

        migration = asyncio.create_task(
            in_thread(lambda: PostgresMigrator(fresh_database, "jobs", load_steps(folder)).run(announce))
        )
        await announced.wait()
        with pytest.raises(DatabaseBusy):
            await store.jobs.enqueue("meanwhile", **LANE)
        with pytest.raises(DatabaseBusy):
            await store.execute("UPDATE background_jobs SET priority = 1")
        go_on.set()
        await migration
        with pytest.raises(SchemaMismatch):
            await store.jobs.enqueue("after", **LANE)
        assert await store.jobs.count() == 1
