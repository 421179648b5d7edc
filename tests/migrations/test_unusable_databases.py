"""What is no database for us gets its own clear error, from the store and from the migrator."""

from __future__ import annotations

import asyncio
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import (
    DatabaseCorrupt,
    DatabaseError,
    DatabaseNotFound,
    JobStore,
    MigrationRequired,
    SchemaMismatch,
    StoreClosed,
)
from jobstore.migrate import Migrator, load_steps


def migrate(path: Path) -> None:
    Migrator(path).run()


def look(path: Path) -> None:
    Migrator(path).status()


def opening_fails(path: Path, error: type[DatabaseError]) -> DatabaseError:
    store = JobStore(path)
    with pytest.raises(error) as failure:
        asyncio.run(store.open())
    assert "\n" not in str(failure.value)
    with pytest.raises(StoreClosed):
        _ = store.jobs
    return failure.value


def acting_fails(path: Path, error: type[DatabaseError]) -> None:
    for act in (look, migrate):
        with pytest.raises(error) as failure:
            act(path)
        assert "\n" not in str(failure.value)


@pytest.fixture
def no_database(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    return path


def test_opening_a_file_that_is_no_database_is_refused(no_database: Path) -> None:
    before = no_database.read_bytes()
    error = opening_fails(no_database, DatabaseCorrupt)
    assert "not an SQLite database" in str(error)
    assert no_database.read_bytes() == before
    assert list(no_database.parent.iterdir()) == [no_database]


def test_migrating_a_file_that_is_no_database_is_refused(no_database: Path) -> None:
    before = no_database.read_bytes()
    acting_fails(no_database, DatabaseCorrupt)
    assert no_database.read_bytes() == before
    assert list(no_database.parent.iterdir()) == [no_database]


def test_opening_a_damaged_database_is_refused(database: Path) -> None:
    migrate(database)
    with database.open("r+b") as file:
        file.seek(100)
        file.write(bytes(range(256)) * 8)
    opening_fails(database, DatabaseCorrupt)


def test_opening_a_folder_is_refused(tmp_path: Path) -> None:
    error = opening_fails(tmp_path, DatabaseNotFound)
    assert "it is a folder" in str(error)


def test_migrating_a_folder_is_refused(tmp_path: Path) -> None:
    acting_fails(tmp_path, DatabaseNotFound)
    assert list(tmp_path.iterdir()) == []


def test_opening_where_nothing_is_names_the_command_and_makes_nothing(database: Path) -> None:
    error = opening_fails(database, DatabaseNotFound)
    assert f"`python -m jobstore.migrate --db {database}`" in str(error)
    assert list(database.parent.iterdir()) == []


def test_migrating_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    acting_fails(tmp_path / "nowhere" / "jobs.db", DatabaseNotFound)
    acting_fails(tmp_path / "nowhere" / "deeper" / "jobs.db", DatabaseNotFound)
    assert list(tmp_path.iterdir()) == []


def test_migrating_below_a_file_is_refused(no_database: Path) -> None:
    acting_fails(no_database / "jobs.db", DatabaseNotFound)


@pytest.mark.parametrize(
    "name",
    ["jobs.db", "two words.db", 'it\'s "quoted".db', "größe-数据-🗄.db", "a?b=c.db", "a#b.db", "100%41.db", "$(x);&.db"],
)
def test_a_pending_migration_names_the_command_that_works(tmp_path: Path, name: str) -> None:
    database = tmp_path / name
    sqlite3.connect(database).close()
    error = opening_fails(database, MigrationRequired)
    assert isinstance(error, MigrationRequired)
    assert error.pending == tuple(step.name for step in load_steps())
    assert f"`{error.command}`" in str(error)
    python, *arguments = shlex.split(error.command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=60)
    asyncio.run(use(database))
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.owner"}


async def use(database: Path) -> None:
    async with JobStore(database) as store:
        job = await store.jobs.enqueue("Hello", task_type="greeting", api_type="claude")
        assert await store.jobs.read_prompt(job.id) == "Hello"


def test_opening_a_database_of_a_newer_version_is_refused(database: Path) -> None:
    migrate(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO migrations VALUES ('9999_from_the_future', 'c', 1)")
    error = opening_fails(database, SchemaMismatch)
    assert isinstance(error, SchemaMismatch)
    assert error.steps == ("9999_from_the_future",)
    assert "install that version" in str(error)


def test_opening_a_database_with_a_changed_step_is_refused(database: Path) -> None:
    migrate(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE migrations SET checksum = 'other'")
    error = opening_fails(database, SchemaMismatch)
    assert load_steps()[0].name in str(error)


_OPEN = """
import asyncio
from jobstore import JobStore, JobStoreError
from jobstore.migrate import Migrator

async def open_store():
    async with JobStore(path):
        print("opened")

for act in (lambda: asyncio.run(open_store()), Migrator(path).run):
    try:
        act()
        print("done")
    except JobStoreError as error:
        print(type(error).__name__, str(error).count("\\n"))
"""

RunAsNobody = Callable[[str, Path], str]


def test_a_database_that_may_only_be_read_is_refused(public_folder: Path, run_as_nobody: RunAsNobody) -> None:
    database = public_folder / "jobs.db"
    migrate(database)
    database.chmod(0o444)
    public_folder.chmod(0o555)
    assert run_as_nobody(_OPEN, database).splitlines() == ["ReadOnlyDatabase 0", "done"]  # there is nothing to migrate


def test_migrating_a_database_that_may_only_be_read_is_refused(public_folder: Path, run_as_nobody: RunAsNobody) -> None:
    database = public_folder / "jobs.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (x)")
    database.chmod(0o444)
    before = database.read_bytes()
    for mode in (0o555, 0o777):
        public_folder.chmod(mode)
        assert run_as_nobody(_OPEN, database).splitlines() == ["MigrationRequired 0", "ReadOnlyDatabase 0"]
    assert database.read_bytes() == before
    assert list(public_folder.iterdir()) == [database]


def test_a_folder_that_may_not_be_written_is_refused(public_folder: Path, run_as_nobody: RunAsNobody) -> None:
    assert run_as_nobody(_OPEN, public_folder / "jobs.db").splitlines() == ["DatabaseNotFound 0", "ReadOnlyDatabase 0"]
    assert list(public_folder.iterdir()) == []


def test_a_database_that_may_not_be_read_is_refused(public_folder: Path, run_as_nobody: RunAsNobody) -> None:
    database = public_folder / "jobs.db"
    migrate(database)
    assert database.stat().st_mode & 0o777 == 0o600
    assert run_as_nobody(_OPEN, database).splitlines() == ["ReadOnlyDatabase 0", "ReadOnlyDatabase 0"]


def test_a_folder_that_may_not_be_entered_is_refused(public_folder: Path, run_as_nobody: RunAsNobody) -> None:
    folder = public_folder / "closed"
    folder.mkdir(mode=0o700)
    migrate(folder / "jobs.db")
    if os.getuid() != 0:
        folder.chmod(0o000)
    try:
        answers = run_as_nobody(_OPEN, folder / "jobs.db").splitlines()
    finally:
        folder.chmod(0o700)
    assert answers == ["DatabaseNotFound 0", "DatabaseNotFound 0"]
