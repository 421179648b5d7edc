"""A backup holds all that its database names, also while everything is in use, and is nothing else but a store."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobstore import (
    DatabaseCorrupt,
    DatabaseNotFound,
    DiskFailed,
    InvalidArgument,
    JobStatus,
    JobStore,
    OutputError,
    SchemaMismatch,
)
from jobstore.aio import in_thread
from jobstore.health import archives, backup, check, copies, restore
from jobstore.outputs import Outputs
from jobstore.ownership import exclusive
from jobstore.progress import Tell
from tests.processes.support import finish, spawn

from .conftest import FILLED, LANE, LARGE, contents


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_a_page(path: Path) -> None:
    """Overwrite the middle of a database."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 8192)


def test_a_copy_is_a_store_of_its_own_with_all_its_texts(filled: Path) -> None:
    made = backup(filled)
    assert made.path.parent == filled.parent
    assert made.path.name.startswith(f"{filled.name}.backup-20")
    assert (made.texts, made.damaged) == (3, [])
    shutil.rmtree(f"{filled}.outputs")
    assert asyncio.run(contents(made.path)) == FILLED
    with closing(sqlite3.connect(made.path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_copy_is_its_owners_alone_and_nothing_else_is_left(filled: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    old_mask = os.umask(0)
    try:
        made = [backup(filled, tmp_path / "copies"), backup(filled, tmp_path / "copies", compress=True)]
    finally:
        os.umask(old_mask)
    scratch = {Path(f"{filled}-wal"), Path(f"{filled}-shm")}  # SQLite's own, of whoever reads
    assert set(tmp_path.iterdir()) - before - scratch == {tmp_path / "copies"}
    found = set((tmp_path / "copies").iterdir())
    assert found == {made[0].path, Path(f"{made[0].path}.outputs"), made[1].path}
    for path in [tmp_path / "copies", *(tmp_path / "copies").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_finished_texts_take_no_room_and_unfinished_ones_are_copied(filled: Path) -> None:
    made = backup(filled)
    links = {path.read_bytes()[:4]: path.stat().st_nlink for path in files_below(Path(f"{made.path}.outputs"))}
    assert links[b"answ"] == links[b"larg"] == 2
    assert links[b"half"] == 1


def test_where_there_are_no_second_names_texts_are_copied(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = backup(filled)
    assert {path.stat().st_nlink for path in files_below(Path(f"{made.path}.outputs"))} == {1}
    assert asyncio.run(contents(made.path)) == FILLED


def test_a_compressed_copy_is_one_file_that_can_be_restored(filled: Path, tmp_path: Path) -> None:
    made = backup(filled, compress=True)
    assert made.path.name.endswith(".tar.gz")
    assert made.path.stat().st_size < len(LARGE)
    assert not Path(f"{made.path}.outputs").exists()
    restore(made.path, tmp_path / "other.db")
    assert asyncio.run(contents(tmp_path / "other.db")) == FILLED


def test_an_archive_that_is_not_what_was_written_is_no_backup(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = archives._write

    def write_and_flip(database: Path, outputs: Path, target: Path) -> dict[str, str]:
        written = write(database, outputs, target)
        with target.open("r+b") as file:
            file.seek(target.stat().st_size // 2)
            file.write(b"\0\0\0\0")
        return written

    monkeypatch.setattr(archives, "_write", write_and_flip)
    with pytest.raises(DiskFailed, match="not what was written"):
        backup(filled, compress=True)
    assert not list(filled.parent.glob("*.backup-*"))


def test_only_so_many_copies_are_kept_and_others_are_left_alone(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    others = [
        folder / name for name in (f"{filled.name}.backup-before-reset-20000101T000000Z", "x.backup-20000101T000000Z")
    ]
    for path in others:
        path.touch()
    made = [backup(filled, folder, compress=number % 2 == 0) for number in range(4)]
    newest = backup(filled, folder, keep=2)
    assert newest.removed == sorted(copy.path for copy in made[:3])
    kept = {made[3].path, Path(f"{made[3].path}.outputs"), newest.path, Path(f"{newest.path}.outputs"), *others}
    assert set(folder.iterdir()) == kept


def test_what_a_killed_backup_has_left_is_removed_after_a_day(filled: Path) -> None:
    old, young = (Path(f"{filled}.backup-20000101T00000{number}Z.part") for number in range(2))
    for path in (old, young):
        path.mkdir()
        (path / "database").touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    backup(filled)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_text_that_is_lost_already_is_named_and_the_rest_is_copied(filled: Path) -> None:
    lost, changed = [path for path in files_below(Path(f"{filled}.outputs")) if path.stat().st_size > 100]
    lost.unlink()
    changed.write_bytes(b"?" * changed.stat().st_size)
    made = backup(filled)
    assert sorted(made.damaged) == sorted(path.relative_to(f"{filled}.outputs").as_posix() for path in (lost, changed))
    assert made.texts == 1


def test_no_copy_is_made_of_what_is_damaged_or_away(filled: Path, tmp_path: Path) -> None:
    shutil.move(f"{filled}.outputs", tmp_path / "away")
    with pytest.raises(OutputError, match="is its disk mounted"):
        backup(filled)
    shutil.move(tmp_path / "away", f"{filled}.outputs")
    with JobsHeld(filled):
        pass
    damage_a_page(filled)
    with pytest.raises(DatabaseCorrupt, match=f"{re.escape(str(filled))} is damaged .*check --repair"):
        backup(filled)
    assert not list(tmp_path.glob("*.backup-*"))


class JobsHeld:
    """Moves all of the log into the file."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path)

    def __enter__(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_what_is_no_store_is_refused_without_a_trace(tmp_path: Path) -> None:
    foreign, text = tmp_path / "foreign.db", tmp_path / "text.db"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE t (x)")
    text.write_text("no database " * 100)
    for path, error in {
        foreign: SchemaMismatch,
        text: DatabaseCorrupt,
        tmp_path / "none.db": DatabaseNotFound,
        tmp_path / "no" / "jobs.db": DatabaseNotFound,
    }.items():
        with pytest.raises(error):
            backup(path)
    assert set(tmp_path.iterdir()) == {foreign, text}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"keep": 0}, "keep"), ({"destination": "a/b/c"}, "destination"), ({"destination": "file"}, "destination")],
)
def test_a_wrong_argument_is_named(filled: Path, tmp_path: Path, arguments: dict[str, Any], field: str) -> None:
    (tmp_path / "file").touch()
    if "destination" in arguments:
        arguments = {"destination": tmp_path / arguments["destination"]}
    with pytest.raises(InvalidArgument) as caught:
        backup(filled, **arguments)
    assert caught.value.field == field


def test_on_postgresql_the_commands_are_named_without_the_password(tmp_path: Path) -> None:
    url = "postgresql://me:secret@host/jobs"
    for call in (lambda: backup(url), lambda: restore(tmp_path, url)):
        with pytest.raises(InvalidArgument, match=r"pg_dump .* `pg_restore .* `jobstore promote`") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_without_room_nothing_is_left(filled: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for compress in (False, True):
            with pytest.raises(DiskFailed):
                backup(filled, compress=compress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(filled.parent.glob("*.backup-*"))


def test_a_texts_folder_elsewhere_is_found(tmp_path: Path) -> None:
    async def fill() -> None:
        async with JobStore(tmp_path / "jobs.db", migrate=True, outputs=tmp_path / "texts") as store:
            await store.jobs.enqueue(LARGE, **LANE)

    asyncio.run(fill())
    with pytest.raises(OutputError, match="mounted"):
        backup(tmp_path / "jobs.db")
    made = backup(tmp_path / "jobs.db", outputs=tmp_path / "texts")
    assert made.texts == 1
    assert asyncio.run(contents(made.path)) == [("idle", LARGE, None)]


def test_nothing_is_copied_beside_a_restore(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobstore.ownership.PATIENCE", 0.0)
    with exclusive(filled, "restore"), pytest.raises(Exception, match="restore"):
        backup(filled)


def test_a_text_that_is_pruned_while_it_is_copied_is_not_missed(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row was read, the text is gone, and so is the row by now: the copy is made anew, without it."""
    copy_texts = copies.copy_texts
    rounds: list[int] = []

    def prune_first(path: Path, source: Outputs, target: Outputs, report: Tell) -> list[str]:
        rounds.append(1)
        if len(rounds) == 1:
            asyncio.run(_prune(filled))
        return copy_texts(path, source, target, report)

    monkeypatch.setattr(copies, "copy_texts", prune_first)
    made = backup(filled)
    assert (len(rounds), made.texts, made.damaged) == (2, 2, [])
    assert asyncio.run(contents(made.path)) == FILLED[1:]
    assert len(files_below(Path(f"{made.path}.outputs"))) == 3  # the marker too


async def _prune(path: Path) -> None:
    async with JobStore(path) as store:
        assert await store.jobs.prune(older_than=0) == 1


WORK = """
    import asyncio, sys
    from jobstore import JobStore

    async def main(path, worker):
        done = 0
        async with JobStore(path, inline_limit=1_000) as store:
            print("begun", flush=True)
            stopped = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
            while not stopped.done() or not done:  # others may have claimed all so far
                await store.jobs.enqueue("prompt " * 500, task_type="passing", api_type="api")
                for claim in await store.jobs.claim(worker, task_types=["passing"]):
                    async with store.jobs.output(claim) as output:
                        await output.write("piece " * 500)
                    await store.jobs.complete(claim)
                    done += 1
                if done % 5 == 0:
                    await store.jobs.prune(older_than=0)
                    await store.sweep()
        print(done)

    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(1200)])])
async def test_beside_workers_that_prune_and_sweep_every_copy_is_whole(
    migrated: Path, tmp_path: Path, rounds: int
) -> None:
    """No error on either side, and what was acknowledged before a copy began, and nobody has pruned, is in it."""
    workers = [await in_thread(_started, migrated, f"worker-{number}") for number in range(4)]
    try:
        async with JobStore(migrated, inline_limit=1_000) as store:
            kept: list[str] = []
            for number in range(rounds):
                kept += [(await store.jobs.enqueue(f"{number} " * 500, **LANE)).id for _ in range(10)]
                made = await in_thread(backup, migrated, tmp_path / "copies", compress=number % 10 == 9)
                assert made.damaged == []
                await _check_copy(made.path, kept, tmp_path / f"restored-{number}.db")
    finally:
        ended = [await in_thread(finish, worker, "\n") for worker in workers]
    for code, output, errors in ended:
        assert code == 0, errors
        assert int(output) > 0


def _started(path: Path, name: str) -> subprocess.Popen[str]:
    worker = spawn(WORK, path, name)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "begun\n"
    return worker


async def _check_copy(made: Path, kept: list[str], restored: Path) -> None:
    await in_thread(restore, made, restored)
    async with JobStore(restored) as copy:
        assert await copy.jobs.count(task_type="task") == len(kept)
        for job_id in kept:
            assert len(await copy.jobs.read_prompt(job_id)) >= 1_000  # whole, by its hash
        for job in (await copy.jobs.list(task_type="passing", status=JobStatus.COMPLETED, limit=100)).items:
            assert await copy.jobs.read_response(job.id) == "piece " * 500
    assert (await in_thread(check, restored)).failed == ()
