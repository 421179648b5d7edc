"""Space of an SQLite file: given back in bounded steps, kept for jobs to come, and without what was deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobstore import DatabaseError, InvalidArgument, JobStore, NewJob
from jobstore.engines import sqlite, sqlite_space
from jobstore.engines.sqlite import SQLiteEngine
from jobstore.repositories import maintenance
from jobstore.testing import FakeClock
from tests.engines.conftest import OnWriter

MARK = "a text that nobody may find "


async def fill(store: JobStore, jobs: int = 200) -> None:
    """Make and cancel jobs with long prompts, in rows; short ones, too; and in a file."""
    prompts = [MARK * 2000, MARK, MARK * 3000]
    for number in range(jobs // 3):
        await store.jobs.enqueue_many(
            NewJob(prompt=f"{number} {prompt}", task_type="t", api_type="a") for prompt in prompts
        )
    for claim in await store.jobs.claim("w", limit=30):
        await store.jobs.complete(claim, MARK * 40)
    await store.jobs.cancel_all(everything=True)


LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def on_disk(path: Path) -> bytes:
    """Return all bytes of a database and its log, by paths that SQLite does not lock."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)):
        log = Path(f"{path}-wal")
        return path.read_bytes() + (log.read_bytes() if log.exists() else b"")


async def test_a_step_frees_no_more_than_it_may(store: JobStore, engine: SQLiteEngine, on_writer: OnWriter) -> None:
    await fill(store)
    await store.jobs.prune(older_than=0)
    before = await engine.space()
    assert before.can_shrink
    page = 4096
    assert before.free > 3 * sqlite_space.STEP_PAGES * page
    assert await on_writer(lambda connection: sqlite_space.give_back(connection, 0, 1.0)) is not None
    after = await engine.space()
    assert before.free - after.free == sqlite_space.STEP_PAGES * page
    spare = after.free - page
    assert await on_writer(lambda connection: sqlite_space.give_back(connection, spare, 1.0)) is not None
    assert await on_writer(lambda connection: sqlite_space.give_back(connection, spare, 1.0)) is None


async def test_the_file_shrinks_and_its_log_is_emptied(store: JobStore, database: Path) -> None:
    await fill(store)
    await store.jobs.prune(older_than=0)
    done = await store.vacuum()
    assert done.before.total > 5_000_000
    assert done.before.free > 3_000_000
    assert done.after.free == 0
    assert done.after.total == database.stat().st_size < 500_000
    assert Path(f"{database}-wal").stat().st_size == 0


async def test_what_was_deleted_is_nowhere_after_a_secure_vacuum(database: Path) -> None:
    async with JobStore(database, migrate=True) as store:
        await fill(store)
        await store.jobs.prune(older_than=0)
        assert (await store.vacuum(secure=True)).after.free == 0
    assert MARK.encode() not in on_disk(database)


async def test_what_is_deleted_is_overwritten_if_asked(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages that are free cannot be seen: the vacuum behind it does nothing here."""

    async def no_vacuum(_backend: object, *, secure: bool) -> None:
        assert secure

    for secure in (False, True):
        async with JobStore(database, migrate=True) as store:
            await store.vacuum(secure=True)
            with monkeypatch.context() as patch:
                patch.setattr(maintenance, "vacuum", no_vacuum)
                ended = NewJob(prompt=MARK * 1000, task_type="t", api_type="a", expires_at=LONG_AGO)
                await store.jobs.enqueue_many([ended] * 30)  # so that no row is ever written anew
                assert await store.jobs.prune(older_than=0, secure=secure) == 30
        assert (MARK.encode() in on_disk(database)) is not secure


async def test_deletes_are_cheap_again_afterwards(store: JobStore, on_writer: OnWriter) -> None:
    def mode(connection: sqlite3.Connection) -> object:
        return connection.execute("PRAGMA secure_delete").fetchone()

    assert await on_writer(mode) == (2,)
    await fill(store, 3)
    await store.jobs.prune(older_than=0, secure=True)
    assert await on_writer(mode) == (2,)


@pytest.fixture
def reader(database: Path) -> Iterator[sqlite3.Connection]:
    """Another program, which goes on reading."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


async def test_a_reader_of_another_program_keeps_the_log_and_a_secure_vacuum_says_so(
    store: JobStore, reader: sqlite3.Connection, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOG_DEADLINE", 0.3)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM lanes").fetchall()
    await fill(store, 30)
    await store.jobs.prune(older_than=0)
    assert (await store.vacuum()).after.free == 0
    with pytest.raises(DatabaseError, match="another program was reading"):
        await store.vacuum(secure=True)
    assert MARK.encode() in on_disk(database)
    reader.execute("COMMIT")
    await store.vacuum(secure=True)
    assert MARK.encode() not in on_disk(database)


async def test_a_file_that_cannot_shrink_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (x)")
    async with JobStore(path, migrate=True) as store:
        await fill(store, 30)
        for call in (store.vacuum(), store.jobs.prune(older_than=0, secure=True)):
            with pytest.raises(InvalidArgument, match="jobstore vacuum --full"):
                await call
        assert await store.jobs.prune(older_than=0) == 30
        assert "space" in await store.maintain()


async def test_the_maintenance_leaves_room_for_jobs_to_come(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store.jobs._backend
    await fill(store)
    await store.jobs.prune(older_than=0)
    full = await backend.engine.space()
    assert "space" in await store.maintain()
    assert (await backend.engine.space()).free == full.free  # 64 MiB may always be free
    monkeypatch.setattr(maintenance, "SPARE_BYTES", 0)
    clock.advance(3600)
    before = await backend.engine.space()
    assert "space" in await store.maintain()
    left = await backend.engine.space()
    assert 0 < left.free <= before.total / 4
