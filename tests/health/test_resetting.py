"""A reset deletes all, once a copy of it is made, and never under those who use it."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import DatabaseInUse, DatabaseNotFound, JobStore, OutputError, SchemaMismatch
from jobstore.aio import in_thread
from jobstore.health import Backup, reset, restore
from jobstore.operations.promotion import NOT_COPIED, TABLES
from tests.promotion.support import migrate

from .conftest import FILLED, LANE, LARGE, contents
from .test_backups import files_below


def test_nothing_is_left_but_the_copy(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    told: list[Backup] = []
    done = reset(filled, backed_up=told.append)
    assert told == [done.backup]
    assert done.backup is not None
    assert done.backup.path.name.startswith(f"{filled.name}.backup-before-reset-")
    assert not Path(f"{filled}.outputs").exists()
    with closing(sqlite3.connect(filled)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        assert "mine" not in tables
        for table in tables - {"migrations", "store_identity"}:
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert filled.stat().st_mode & 0o777 == 0o600
    assert asyncio.run(contents(filled)) == []
    assert asyncio.run(contents(done.backup.path)) == FILLED
    restore(done.backup.path, filled)
    assert asyncio.run(contents(filled)) == FILLED


def test_it_leaves_no_scratch_behind_also_not_of_one_that_was_killed(filled: Path, tmp_path: Path) -> None:
    for name in (".resetting", ".resetting-wal", ".resetting.old", ".resetting.owner"):
        Path(f"{filled}{name}").touch()
    for name in (".resetting.old.outputs", ".outputs.resetting"):
        Path(f"{filled}{name}").mkdir()
    reset(filled)
    assert [path for path in tmp_path.iterdir() if "resetting" in path.name] == []


async def test_it_is_refused_while_a_store_is_open(filled: Path) -> None:
    async with JobStore(filled):
        with pytest.raises(DatabaseInUse):
            await in_thread(reset, filled)
    assert await contents(filled) == FILLED
    assert not list(filled.parent.glob("*backup*"))


def test_without_a_copy_nothing_is_deleted(filled: Path) -> None:
    texts = Path(f"{filled}.outputs")
    texts.rename(f"{filled}.away")
    with pytest.raises(OutputError, match="mounted"):
        reset(filled)
    Path(f"{filled}.away").rename(texts)
    assert asyncio.run(contents(filled)) == FILLED


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE t (x)")
    for path, error in {foreign: SchemaMismatch, tmp_path / "none.db": DatabaseNotFound}.items():
        with pytest.raises(error):
            reset(path)
    assert list(tmp_path.iterdir()) == [foreign]


async def test_on_postgresql_the_tables_are_emptied_once_no_worker_lives(fresh_database: str, tmp_path: Path) -> None:
    await in_thread(migrate, fresh_database)
    async with JobStore(fresh_database, outputs=tmp_path / "texts") as store:
        await store.sessions.create(name="demo", project_directory="/app")
        await store.kv.set("key", 1)
        await store.jobs.enqueue(LARGE, **LANE)
        [claim] = await store.jobs.claim("worker-1")
        with pytest.raises(DatabaseInUse, match="worker-1"):
            await in_thread(reset, fresh_database)
        await store.jobs.complete(claim, "answer")
        done = await in_thread(reset, fresh_database)
        assert done.backup is None
        assert fresh_database not in done.name or "@" not in fresh_database
        for table in {table.name for table in TABLES} | NOT_COPIED - {"migrations", "store_identity", "store_writers"}:
            assert await store.execute(f"SELECT * FROM {table}") == []
        await store.jobs.enqueue("again", **LANE)
        assert len(await in_thread(files_below, tmp_path / "texts")) == 2  # the marker, and one for the sweep


async def test_on_postgresql_what_is_no_store_is_refused(fresh_database: str) -> None:
    with pytest.raises(SchemaMismatch, match="migrate it first"):
        await in_thread(reset, fresh_database)
