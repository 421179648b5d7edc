"""A log that was cut or damaged is told from one whose writer was killed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from jobstore.health import Finding, check, repair
from jobstore.health.salvage.log import FRAME_HEADER, HEADER, Log
from jobstore.health.salvage.pages import Pages
from jobstore.migrate import Migrator
from tests.checking.support import PAGE, rows_of

COMMITS = 20
FRAME = FRAME_HEADER + PAGE


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database as it lies on the disk while its log holds 20 commits: copied from under its writer."""
    source = tmp_path / "source.db"
    Migrator(source).run()
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        for number in range(COMMITS):
            connection.execute(
                "INSERT INTO key_value_store VALUES (?, 1700000000000, ?)", (str(number), '"' + "x" * 9000 + '"')
            )
        shutil.copy(source, path)
        shutil.copy(f"{source}-wal", f"{path}-wal")
    return path


def log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


def log_finding(path: Path) -> Finding:
    [found] = [finding for finding in check(path).findings if finding.name == "log"]
    return found


def committed(path: Path) -> int:
    [(count,)] = rows_of(path, "SELECT count(*) FROM key_value_store")
    return int(count)


def test_a_whole_log_is_read_as_sqlite_reads_it(logged: Path) -> None:
    assert log_finding(logged).ok
    log = Log.read(log_of(logged))
    assert log.pages
    with Pages(logged) as pages:
        ours = {number: pages.read(number) for number in range(1, pages.count + 1)}
    with closing(sqlite3.connect(logged)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    theirs = logged.read_bytes()
    assert b"".join(ours.values()) == theirs


def test_a_log_that_is_cut_within_a_page_is_told(logged: Path) -> None:
    frames = (log_of(logged).stat().st_size - HEADER) // FRAME
    os.truncate(log_of(logged), HEADER + frames // 2 * FRAME + FRAME_HEADER + 1000)
    found = log_finding(logged)
    assert not found.ok
    assert "was cut" in found.summary

    cut = log_of(logged).read_bytes()

    done = repair(logged)

    assert done.report.ok
    assert log_of(done.backup or logged).read_bytes() == cut
    assert 0 < committed(logged) < COMMITS


def test_a_log_that_is_damaged_within_is_told(logged: Path) -> None:
    frames = (log_of(logged).stat().st_size - HEADER) // FRAME
    with log_of(logged).open("r+b") as file:
        file.seek(HEADER + frames // 2 * FRAME + 100)
        file.write(b"damage")
    found = log_finding(logged)
    assert not found.ok
    assert "commits behind the damage" in found.summary
    assert Log.read(log_of(logged)).lost_commits in {COMMITS // 2 - 1, COMMITS // 2, COMMITS // 2 + 1}
    assert repair(logged).report.ok
    assert 0 < committed(logged) < COMMITS


def test_a_log_whose_header_is_damaged_is_told(logged: Path) -> None:
    with log_of(logged).open("r+b") as file:
        file.write(b"\0" * HEADER)
    assert not log_finding(logged).ok
    assert repair(logged).report.ok


def test_a_writer_that_was_killed_in_a_transaction_has_damaged_nothing(logged: Path) -> None:
    frames = Log.read(log_of(logged))
    assert frames.uncommitted == 0
    last = max(frames.pages.values()) - FRAME_HEADER
    os.truncate(log_of(logged), last + FRAME_HEADER)  # the last frame's header alone
    found = log_finding(logged)
    assert found.ok
    assert "never committed" in found.summary
    assert check(logged).ok
    assert committed(logged) == COMMITS - 1


def test_remains_of_an_earlier_round_are_no_damage(logged: Path) -> None:
    """A log is written anew from its beginning; what is behind belongs to the round before."""
    with closing(sqlite3.connect(logged, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        connection.execute("INSERT INTO key_value_store VALUES ('new', 1700000000000, '1')")
        assert log_finding(logged).ok  # in use
        copy = logged.with_name("copy.db")
        shutil.copy(logged, copy)
        shutil.copy(log_of(logged), log_of(copy))
    found = log_finding(copy)
    assert found.ok
    assert "all whole" in found.summary
    assert committed(copy) == COMMITS + 1


def test_remains_of_a_killed_writer_behind_new_commits_are_no_damage(logged: Path) -> None:
    size = log_of(logged).stat().st_size
    os.truncate(log_of(logged), size - FRAME)  # without the frame that commits
    remains = log_of(logged).read_bytes()
    with closing(sqlite3.connect(logged, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("UPDATE key_value_store SET value = '2' WHERE key = '0'")
        written = log_of(logged).read_bytes()
        copy = logged.with_name("copy.db")
        shutil.copy(logged, copy)
        log_of(copy).write_bytes(written + remains[len(written) :])
    assert log_finding(copy).ok


def test_no_log_or_an_empty_one_is_fine(logged: Path) -> None:
    log_of(logged).write_bytes(b"")
    assert log_finding(logged).ok
    log_of(logged).unlink()
    assert log_finding(logged).ok


def test_what_a_killed_program_began_in_a_journal_is_told_and_undone(tmp_path: Path) -> None:
    source, path = tmp_path / "source.db", tmp_path / "jobs.db"
    Migrator(source).run()
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        connection.execute("PRAGMA cache_size=1")  # so that it writes before it commits
        connection.execute("INSERT INTO key_value_store VALUES ('kept', 1700000000000, '1')")
        connection.execute("BEGIN")
        for number in range(200):
            connection.execute(
                "INSERT INTO key_value_store VALUES (?, 1700000000000, ?)", (str(number), f'"{"x" * 5000}"')
            )
        shutil.copy(source, path)
        shutil.copy(f"{source}-journal", f"{path}-journal")
    path.chmod(0o600)
    assert [found.name for found in check(path).failed if found.name == "journal"] == ["journal"]
    assert repair(path).report.ok
    assert rows_of(path, "SELECT key FROM key_value_store") == [("kept",)]
