"""A database that holds anything is copied before it is changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobstore import DiskFailed, SchemaMismatch
from jobstore.migrate import Migrator, Result, files

if TYPE_CHECKING:
    from tests.migrations.conftest import StepFolder


@pytest.fixture
def old(database: Path, steps: StepFolder) -> Path:
    """A database to which the second step, which comes in later, was not applied."""
    steps.add("0001_first.sql", "CREATE TABLE t (x); INSERT INTO t VALUES (1);")
    Migrator(database, steps.load()).run()
    steps.add("0002_second.sql", "INSERT INTO t VALUES (2);")
    return database


def rows_of(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def backups_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*backup*"))


def migrate(path: Path, steps: StepFolder) -> Result:
    return Migrator(path, steps.load()).run()


def test_a_backup_holds_what_was_there_before_the_first_step(old: Path, steps: StepFolder) -> None:
    backup = migrate(old, steps).backup
    assert backups_of(old) == [backup]
    assert backup is not None
    assert backup.name.startswith(f"{old.name}.backup-")
    assert rows_of(old, "SELECT x FROM t") == [(1,), (2,)]
    assert rows_of(backup, "SELECT x FROM t") == [(1,)]
    assert rows_of(backup, "SELECT name FROM migrations") == [("0001_first",)]
    assert rows_of(backup, "PRAGMA integrity_check") == [("ok",)]


def test_a_backup_can_be_migrated_itself(old: Path, steps: StepFolder) -> None:
    backup = migrate(old, steps).backup
    assert backup is not None
    assert migrate(backup, steps).applied == ["0002_second"]


def test_a_backup_is_readable_by_its_owner_alone(old: Path, steps: StepFolder) -> None:
    old.chmod(0o644)
    backup = migrate(old, steps).backup
    assert backup is not None
    assert backup.stat().st_mode & 0o777 == 0o600


def test_a_backup_holds_what_is_only_in_the_log(old: Path, steps: StepFolder) -> None:
    with closing(sqlite3.connect(old, isolation_level=None)) as other:
        other.execute("PRAGMA wal_autocheckpoint=0")
        other.execute("INSERT INTO t VALUES ('only in the log')")
        assert b"only in the log" not in old.read_bytes()
        backup = migrate(old, steps).backup
    assert backup is not None
    assert rows_of(backup, "SELECT x FROM t") == [(1,), ("only in the log",)]


def test_nothing_can_be_written_between_the_backup_and_the_step(old: Path, steps: StepFolder) -> None:
    events: list[str] = []

    def write_from_elsewhere(event: str) -> None:
        events.append(event)
        with closing(sqlite3.connect(old, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("INSERT INTO t VALUES ('between')")

    Migrator(old, steps.load()).run(
        lambda step: write_from_elsewhere(step.name), lambda backup: write_from_elsewhere(backup.name)
    )
    assert events == [backups_of(old)[0].name, "0002_second"]


def test_a_backup_is_told_of_and_kept_when_the_step_fails(old: Path, steps: StepFolder) -> None:
    steps.add("0002_second.sql", "nonsense;")
    told: list[Path] = []
    for _ in range(2):  # within the same second: each has a name of its own
        with pytest.raises(SchemaMismatch):
            Migrator(old, steps.load()).run(backed_up=told.append)
    assert sorted(told) == backups_of(old)
    assert len(set(told)) == 2


def test_one_backup_serves_all_steps(old: Path, steps: StepFolder) -> None:
    steps.add("0003_third.sql", "INSERT INTO t VALUES (3);")
    assert migrate(old, steps).applied == ["0002_second", "0003_third"]
    assert len(backups_of(old)) == 1


def test_a_new_an_empty_and_an_up_to_date_database_have_no_backup(tmp_path: Path, steps: StepFolder) -> None:
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    new, empty = tmp_path / "new.db", tmp_path / "empty.db"
    empty.touch()
    results = [migrate(path, steps) for path in (new, empty, new)]
    assert [result.applied for result in results] == [["0001_first"], ["0001_first"], []]
    assert [result.backup for result in results] == [None, None, None]
    assert backups_of(new) == []


def test_a_database_of_a_user_is_copied_before_ours_is_put_into_it(foreign: Path) -> None:
    backup = Migrator(foreign).run().backup
    assert backup is not None
    assert rows_of(backup, "SELECT count(*) FROM sqlite_schema WHERE name = 'background_jobs'") == [(0,)]
    assert rows_of(backup, "SELECT title FROM albums") == [("First",), ("Orphan",)]


def test_without_room_for_the_backup_nothing_is_changed(old: Path, steps: StepFolder) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFailed):
            migrate(old, steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert backups_of(old) == []
    assert rows_of(old, "SELECT name FROM migrations") == [("0001_first",)]


def test_a_backup_that_cannot_be_named_is_refused(tmp_path: Path, steps: StepFolder) -> None:
    database = tmp_path / ("j" * 240)
    steps.add("0001_first.sql", "CREATE TABLE t (x);")
    migrate(database, steps)
    steps.add("0002_second.sql", "INSERT INTO t VALUES (2);")
    with pytest.raises(DiskFailed, match="cannot be created: File name too long"):
        migrate(database, steps)
    assert rows_of(database, "SELECT x FROM t") == []


def test_a_backup_that_is_interrupted_is_removed(old: Path, steps: StepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        migrate(old, steps)
    assert backups_of(old) == []
    assert rows_of(old, "SELECT x FROM t") == [(1,)]
