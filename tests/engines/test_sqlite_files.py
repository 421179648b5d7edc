"""Two connections on one file: waiting for each other's locks, and the size of the write-ahead log."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock

from jobstore import DatabaseBusy, JobStore
from jobstore.engines import sqlite
from jobstore.engines.sqlite import SQLiteEngine


class Lock:
    """Another program's write transaction on the same file, on a thread of its own."""

    def __init__(self, database: Path) -> None:
        self.held, self.let_go = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold, args=(database,))
        self._thread.start()
        self.held.wait()

    def _hold(self, database: Path) -> None:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self.held.set()
            self.let_go.wait()
            connection.execute("ROLLBACK")

    def release(self) -> None:
        self.let_go.set()
        self._thread.join()


@pytest.fixture
def lock(store: JobStore, database: Path) -> Iterator[Lock]:
    assert store.is_open
    lock = Lock(database)
    yield lock
    lock.release()


async def test_a_lock_held_past_the_deadline_is_a_clear_error_for_all_and_nothing_is_written(
    store: JobStore, engine: SQLiteEngine, lock: Lock
) -> None:
    engine._transactions._deadline = 0.02
    results = await asyncio.gather(*(store.kv.set(str(n), n) for n in range(5)), return_exceptions=True)
    assert all(isinstance(result, DatabaseBusy) and result.waited >= 0.02 for result in results)
    await asyncio.to_thread(lock.release)
    assert await store.kv.items() == {}
    await store.kv.set("k", 1)


async def test_a_lock_that_is_let_go_in_time_is_only_waited_for(store: JobStore, lock: Lock) -> None:
    writing = asyncio.ensure_future(store.kv.set("k", 1))
    while store.stats().writer.waiting_operations:
        await asyncio.sleep(0)
    assert await store.kv.get("k") is None  # readers do not wait
    await asyncio.to_thread(lock.release)
    await writing
    assert await store.kv.get("k") == 1


async def fill(store: JobStore, rounds: int) -> None:
    for number in range(rounds):
        await store.kv.set(str(number % 20), "x" * 50_000)


async def test_the_log_is_moved_into_the_database_when_it_outgrows_its_limit(
    store: JobStore, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT", 200_000)
    await fill(store, 100)
    assert database.with_name("jobs.db-wal").stat().st_size < 100 * 50_000 / 4


async def test_while_another_process_is_at_the_log_it_is_left_to_it(
    store: JobStore, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT", 200_000)
    with FileLock(f"{database}.checkpoint.lock"):
        await fill(store, 30)
        assert database.with_name("jobs.db-wal").stat().st_size > 1_000_000
    assert len(await store.kv.items()) == 20
