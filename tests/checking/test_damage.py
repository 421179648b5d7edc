"""Every kind of damage is named by the check, which never fails itself, and mended by the repair as far as possible."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest

from jobstore import DatabaseBusy, DatabaseCorrupt, JobStore, ownership
from jobstore.aio import in_thread
from jobstore.health import Repair, check, repair, subject
from jobstore.health.salvage import pages
from tests.checking.support import execute, jobs_on, overwrite, pages_of, rows_of, table, zero
from tests.processes.support import run

Damage = Callable[[Path], list[int]]
"""Damages a file; returns the pages that it has destroyed."""


def chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - it is to repeat itself


def leaves(path: Path) -> list[int]:
    numbers = chance(1).sample(pages_of(path, "background_jobs", "leaf"), 5)
    overwrite(path, numbers)
    return numbers


def every_kind_of_page(path: Path) -> list[int]:
    numbers = chance(2).sample(range(3, path.stat().st_size // 4096), 30)
    overwrite(path, numbers)
    return numbers


def inner_pages_of_the_jobs(path: Path) -> list[int]:
    numbers = pages_of(path, "background_jobs", "internal")
    assert len(numbers) > 1
    overwrite(path, numbers)
    return numbers


def an_index(path: Path) -> list[int]:
    numbers = pages_of(path, "background_jobs_list")
    zero(path, numbers)
    return numbers


def the_index_of_ids(path: Path) -> list[int]:
    numbers = pages_of(path, "sqlite_autoindex_background_jobs_1")
    zero(path, numbers)
    return numbers


def the_end(path: Path) -> list[int]:
    pages = path.stat().st_size // 4096
    os.truncate(path, pages * 3 // 4 * 4096 + 1000)
    return list(range(pages * 3 // 4 + 1, pages + 1))


def the_header(path: Path) -> list[int]:
    with path.open("r+b") as file:
        file.write(b"\0" * 100)
    return []


def the_first_page(path: Path) -> list[int]:
    zero(path, [1])
    return [1]


def the_first_page_and_the_map(path: Path) -> list[int]:
    zero(path, [1, 2])
    return [1, 2]


WITHOUT_ROOM = """
    import resource, sys
    from jobstore import DatabaseError
    from jobstore.health import repair

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        repair(sys.argv[1])
    except DatabaseError as error:
        print(type(error).__name__)
"""

DAMAGES = [
    leaves,
    every_kind_of_page,
    inner_pages_of_the_jobs,
    pytest.param(an_index, marks=pytest.mark.full),
    the_index_of_ids,
    the_end,
    the_header,
    pytest.param(the_first_page, marks=pytest.mark.full),
    the_first_page_and_the_map,
]


class Damaged(NamedTuple):
    path: Path
    pages: list[int]


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(request: pytest.FixtureRequest, copied: Path) -> Damaged:
    return Damaged(copied, request.param(copied))


def test_what_is_damaged_is_named_and_what_can_be_read_is_saved(damaged: Damaged, original: Path) -> None:
    before = check(damaged.path)
    assert "integrity" in {finding.name for finding in before.failed}
    assert all(finding.remedy for finding in before.failed)
    bytes_before = damaged.path.read_bytes()

    done = repair(damaged.path)

    assert done.report.ok, done.report.failed
    assert done.backup is not None
    assert done.backup.read_bytes() == bytes_before  # the damaged file is kept as it was
    lost = jobs_on(original, damaged.pages)
    assert_saved(original, damaged.path, lost)
    assert_counted(done, original, damaged.path, at_most=len(lost))


def assert_saved(original: Path, mended: Path, lost: set[str]) -> None:
    """Compare what was to be saved: at least 99 % of what was not on damaged pages, each row as it was."""
    wanted, found = table(original, "background_jobs"), table(mended, "background_jobs")
    outside = {key for key in wanted if key[0] not in lost}
    assert found.keys() <= wanted.keys()
    assert len(outside & found.keys()) >= 0.99 * len(outside)
    running = {key for key, row in wanted.items() if row["status"] == "running"}
    for key in found.keys() - running:  # whose attempts may be lost
        assert found[key] == wanted[key]


def assert_counted(done: Repair, original: Path, mended: Path, at_most: int) -> None:
    """Compare what the repair says with what is there."""
    said = {salvaged.table: salvaged for salvaged in done.tables}
    if not said:
        return  # it was mended in place
    [(saved,)] = rows_of(mended, "SELECT count(*) FROM background_jobs")
    [(all_jobs,)] = rows_of(original, "SELECT count(*) FROM background_jobs")
    assert said["background_jobs"].saved == saved
    assert said["background_jobs"].lost <= at_most
    assert saved + at_most >= all_jobs


def test_lost_rows_are_counted_where_an_index_still_knows_them(copied: Path, original: Path) -> None:
    lost = jobs_on(original, leaves(copied))
    [salvaged] = [found for found in repair(copied).tables if found.table == "background_jobs"]
    assert salvaged.lost == len(lost) > 0
    assert set(salvaged.lost_keys) == lost


def test_the_other_tables_are_saved_too(copied: Path, original: Path) -> None:
    overwrite(copied, pages_of(copied, "background_jobs", "internal"))
    assert repair(copied).report.ok
    for name in (
        "sessions",
        "included_files",
        "lanes",
        "job_attempts",
        "cached_state",
        "key_value_store",
        "migrations",
    ):
        assert table(copied, name) == table(original, name)


async def test_a_mended_store_works(copied: Path) -> None:
    the_first_page(copied)
    await in_thread(repair, copied)
    async with JobStore(copied) as store:
        [claim] = await store.jobs.claim("worker")
        await store.jobs.complete(claim, "answer")
        spilled = await store.execute("SELECT id FROM background_jobs WHERE output_file_path IS NOT NULL LIMIT 1")
        assert (await store.jobs.read_response(spilled[0]["id"]) or "").startswith("answer ")
    assert (await in_thread(check, copied)).ok


def test_pages_that_were_deleted_do_not_come_back(copied: Path) -> None:
    execute(copied, "DELETE FROM background_jobs WHERE rowid % 2")
    kept = table(copied, "background_jobs")
    inner_pages_of_the_jobs(copied)
    assert repair(copied).report.ok
    assert table(copied, "background_jobs").keys() == kept.keys()


def test_what_users_added_is_saved(copied: Path) -> None:
    execute(
        copied,
        """
        CREATE TABLE notes (number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT, weight REAL, raw BLOB);
        INSERT INTO notes (text, weight, raw) VALUES ('a', 1, x'00ff'), (NULL, 0.5, NULL);
        DELETE FROM notes WHERE number = 2;
        INSERT INTO notes (text, weight) VALUES ('c', -3);
        CREATE INDEX notes_by_text ON notes (text);
        CREATE VIEW heavy AS SELECT * FROM notes WHERE weight > 0;
        ALTER TABLE sessions ADD COLUMN colour TEXT DEFAULT 'red';
        CREATE VIRTUAL TABLE words USING fts5(text);
        INSERT INTO words VALUES ('find me'), ('and me');
        """,
    )
    notes = rows_of(copied, "SELECT * FROM notes")
    inner_pages_of_the_jobs(copied)
    done = repair(copied)
    assert done.report.ok
    assert done.not_mended == ()
    assert rows_of(copied, "SELECT * FROM notes") == notes
    assert rows_of(copied, "SELECT number FROM heavy") == [(1,)]
    assert rows_of(copied, "SELECT colour FROM sessions") == [("red",)]
    assert rows_of(copied, "SELECT text FROM words WHERE words MATCH 'find'") == [("find me",)]
    execute(copied, "INSERT INTO notes (text) VALUES ('d')")
    assert rows_of(copied, "SELECT max(number) FROM notes") == [(4,)]  # no number is given twice


def test_two_jobs_with_one_key_are_both_kept(copied: Path) -> None:
    execute(
        copied,
        "DROP INDEX background_jobs_idempotency;"
        "UPDATE background_jobs SET idempotency_key = 'same' WHERE idempotency_key IN ('job-1', 'job-2')",
    )
    done = repair(copied)
    assert done.report.ok
    assert rows_of(copied, "SELECT count(*) FROM background_jobs WHERE idempotency_key = 'same'") == [(1,)]
    assert rows_of(copied, "SELECT count(*) FROM background_jobs") == [(5000,)]


def test_without_room_the_damaged_file_stays(copied: Path) -> None:
    the_first_page(copied)
    before = copied.read_bytes()
    code, output, errors = run(WITHOUT_ROOM, copied)
    assert (code, output) == (0, "DiskFailed\n"), errors
    assert copied.read_bytes() == before
    assert not Path(f"{copied}.repairing").exists()
    assert repair(copied).report.ok


def test_an_empty_file_or_noise_is_named(tmp_path: Path) -> None:
    noise = tmp_path / "noise.db"
    noise.write_bytes(os.urandom(50_000))
    assert "integrity" in {finding.name for finding in check(noise).failed}
    empty = tmp_path / "empty.db"
    empty.touch()
    assert {"migrations", "schema"} <= {finding.name for finding in check(empty).failed}


class FailingDisk(FileIO):
    """A file of which the disk cannot read one page any more."""

    bad_page = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() // 4096 + 1 == self.bad_page:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(-1 if size is None else size)


def test_what_lies_elsewhere_on_a_failing_disk_is_saved(
    copied: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = pages_of(copied, "background_jobs", "leaf")[5]
    lost = jobs_on(copied, [number])
    zero(copied, [1])  # so that it is read page by page
    monkeypatch.setattr(FailingDisk, "bad_page", number)
    monkeypatch.setattr(pages, "FileIO", FailingDisk)
    assert repair(copied).report.ok
    assert lost
    assert {key for (key,) in table(copied, "background_jobs")} == {
        key for (key,) in table(original, "background_jobs")
    } - lost


@pytest.mark.parametrize("content", [b"no database\n" * 500, b"\0" * 40_960, os.urandom(50_000)])
def test_where_no_row_can_be_saved_the_file_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseCorrupt, match="no row"):
        repair(path)
    assert path.read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"jobs.db", "jobs.db.owner"}


def test_a_repair_that_is_interrupted_while_it_swaps_is_finished_by_the_next(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C, after the plan was written and before the first file was moved."""
    zero(copied, [1])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_make_all", interrupt)
        with pytest.raises(KeyboardInterrupt):
            repair(copied)
    assert check(copied).ok
    assert rows_of(copied, "SELECT count(*) FROM background_jobs") == [(5000,)]


def test_a_file_that_another_program_keeps_for_itself_is_not_salvaged(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is SQLite's own, as it knows nothing of ours."""
    monkeypatch.setattr(subject, "BUSY_MILLISECONDS", 10)
    with closing(sqlite3.connect(copied, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("UPDATE sessions SET name = 'locked'")
        with pytest.raises(DatabaseBusy):
            repair(copied)
        assert not list(copied.parent.glob("*damaged*"))
    assert check(copied).ok


@pytest.mark.parametrize("lost", ["0001%", "0002%", "0003%", "000_%"])
def test_rows_are_saved_though_neither_the_schema_nor_the_records_of_its_steps_are_whole(
    copied: Path, lost: str
) -> None:
    """Rows are known by the number of their columns, and a step may have added some."""
    with closing(sqlite3.connect(copied, isolation_level=None)) as connection:
        connection.execute(f"DELETE FROM migrations WHERE name LIKE '{lost}'")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'background_jobs'")
    assert repair(copied).report.ok
    assert rows_of(copied, "SELECT count(*) FROM background_jobs") == [(5000,)]


@pytest.mark.parametrize("rounds", [2, pytest.param(60, marks=pytest.mark.full)])
def test_any_damage_at_all_is_survived(original: Path, tmp_path: Path, rounds: int) -> None:
    """Bytes anywhere, in the database and in its log: neither the check nor the repair may fail."""
    noise = chance(3)
    for round_ in range(rounds):
        path = tmp_path / f"{round_}.db"
        shutil.copy(original, path)
        with path.open("r+b") as file:
            for _ in range(noise.choice([1, 20, 400])):
                file.seek(noise.randrange(path.stat().st_size))
                file.write(noise.randbytes(noise.choice([1, 8, 5000])))
        check(path)
        assert {finding.name for finding in repair(path).report.failed} <= {"texts", "outputs"}
