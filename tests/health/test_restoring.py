"""Restoring puts back what a backup holds, all of it or nothing, and keeps what was there."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import (
    DatabaseCorrupt,
    DatabaseInUse,
    DatabaseNotFound,
    DiskFailed,
    InvalidArgument,
    JobStore,
    OutputError,
    SchemaMismatch,
)
from jobstore.aio import in_thread
from jobstore.health import backup, restore

from .conftest import FILLED, LANE, LARGE, contents
from .test_backups import damage_a_page, files_below


@pytest.fixture
def saved(filled: Path, tmp_path: Path) -> Path:
    """A backup of a store that has changed since."""
    path = backup(filled, tmp_path / "copies").path
    asyncio.run(enqueue(filled, "later"))
    return path


async def enqueue(path: Path, prompt: str) -> None:
    async with JobStore(path) as store:
        await store.jobs.enqueue(prompt, **LANE)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder, those aside that hold nothing but locks and SQLite's scratch."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files_below(folder)
        if not path.name.endswith((".owner", "-shm", ".lock")) and path.stat().st_size
    }


def test_it_is_as_it_was_and_what_was_there_is_kept(saved: Path, filled: Path) -> None:
    done = restore(saved, filled)
    assert asyncio.run(contents(filled)) == FILLED
    assert done.kept is not None
    assert done.kept.name.startswith(f"{filled.name}.backup-before-restore-")
    assert done.kept_outputs == Path(f"{done.kept}.outputs")
    assert asyncio.run(contents(done.kept)) == [*FILLED, ("idle", "later", None)]
    assert (done.path, done.texts, done.damaged) == (filled, 3, [])
    assert restore(saved, filled).kept != done.kept


def test_the_backup_stays_as_it_was(saved: Path, filled: Path) -> None:
    before = snapshot(saved.parent)
    restore(saved, filled)
    assert snapshot(saved.parent) == before
    assert set(saved.parent.iterdir()) == {saved, Path(f"{saved}.outputs")}


def test_it_can_be_restored_to_where_nothing_is(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    done = restore(saved, other)
    assert (done.kept, done.kept_outputs) == (None, None)
    assert asyncio.run(contents(other)) == FILLED
    assert other.stat().st_mode & 0o777 == 0o600


def test_over_a_link_the_file_itself_is_swapped(saved: Path, filled: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(filled)
    done = restore(saved, link, outputs=f"{filled}.outputs")
    assert (done.path, link.is_symlink()) == (filled, True)
    assert asyncio.run(contents(filled)) == FILLED


def test_a_texts_folder_elsewhere_is_swapped_as_well(saved: Path, filled: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    shutil.move(f"{filled}.outputs", texts)
    done = restore(saved, filled, outputs=texts)
    assert asyncio.run(contents(filled, outputs=texts)) == FILLED
    assert done.kept_outputs is not None
    assert done.kept_outputs.name.startswith("texts.backup-before-restore-")
    assert done.kept is not None
    assert asyncio.run(contents(done.kept, outputs=done.kept_outputs))[:-1] == FILLED


async def test_nothing_is_restored_while_a_store_is_open(saved: Path, filled: Path, tmp_path: Path) -> None:
    async with JobStore(filled):
        before = await in_thread(snapshot, tmp_path)
        with pytest.raises(DatabaseInUse):
            await in_thread(restore, saved, filled)
        assert await in_thread(snapshot, tmp_path) == before
    await in_thread(restore, saved, filled)


def _truncate(saved: Path) -> None:
    os.truncate(saved, saved.stat().st_size // 2)


def _lose_a_text(saved: Path) -> None:
    max(files_below(Path(f"{saved}.outputs")), key=lambda path: path.stat().st_size).unlink()


def _change_a_text(saved: Path) -> None:
    text = max(files_below(Path(f"{saved}.outputs")), key=lambda path: path.stat().st_size)
    size = text.stat().st_size
    text.unlink()  # it is a second name
    text.write_bytes(b"?" * size)


def _lose_all_texts(saved: Path) -> None:
    shutil.rmtree(f"{saved}.outputs")


def _of_another_store(saved: Path) -> None:
    Path(f"{saved}.outputs", "store_id").write_text("another")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_a_page, DatabaseCorrupt),
        (_truncate, DatabaseCorrupt),
        (_lose_a_text, OutputError),
        (_change_a_text, OutputError),
        (_lose_all_texts, OutputError),
        (_of_another_store, OutputError),
        (lambda saved: saved.write_bytes(b"no database" * 500), DatabaseCorrupt),
        (lambda saved: saved.write_bytes(b""), SchemaMismatch),
        (lambda saved: saved.unlink(), DatabaseNotFound),
    ],
    ids=["page", "truncated", "lost", "changed", "all lost", "foreign texts", "no database", "empty", "missing"],
)
def test_a_damaged_backup_is_refused_before_anything_is_moved(
    saved: Path, filled: Path, tmp_path: Path, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    damage(saved)
    before = snapshot(tmp_path)
    with pytest.raises(error):
        restore(saved, filled)
    assert snapshot(tmp_path) == before
    assert asyncio.run(contents(filled)) == [*FILLED, ("idle", "later", None)]


@pytest.mark.parametrize("damage", [_lose_a_text, _change_a_text, _lose_all_texts])
def test_what_is_left_of_a_damaged_backup_can_be_had(
    saved: Path, filled: Path, damage: Callable[[Path], object]
) -> None:
    damage(saved)
    done = restore(saved, filled, leave_damaged=True)
    assert done.damaged
    assert done.texts == 3 - len(done.damaged)


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_damaged_archive_is_refused_before_anything_is_moved(filled: Path, tmp_path: Path, cut: float) -> None:
    saved = backup(filled, tmp_path / "copies", compress=True).path
    os.truncate(saved, int(saved.stat().st_size * cut))
    before = snapshot(tmp_path)
    with pytest.raises(DatabaseCorrupt):
        restore(saved, filled)
    assert snapshot(tmp_path) == before


def test_an_archive_cannot_lead_out_of_its_folder(filled: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar.gz"
    database = filled.read_bytes()
    for name, kind in {
        "outputs/../../x": tarfile.REGTYPE,
        "/etc/x": tarfile.REGTYPE,
        "outputs/a": tarfile.SYMTYPE,
    }.items():
        with tarfile.open(bad, "w:gz") as archive:
            member = tarfile.TarInfo("database")
            member.size = len(database)
            archive.addfile(member, io.BytesIO(database))
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        with pytest.raises(DatabaseCorrupt, match="backup"):
            restore(bad, tmp_path / "other.db")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "other.db").exists()


def test_what_cannot_be_looked_at_is_no_backup(filled: Path, tmp_path: Path) -> None:
    for source in (tmp_path / "missing", tmp_path, tmp_path / ("x" * 300)):  # longer than a name can be
        with pytest.raises(DatabaseNotFound):
            restore(source, filled)


def test_the_database_itself_and_a_mounted_folder_are_refused(
    saved: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidArgument, match="is the database itself"):
        restore(filled, filled)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == Path(f"{filled}.outputs"))
    with pytest.raises(OutputError, match="mounted"):
        restore(saved, filled)
    assert len(asyncio.run(contents(filled))) == 4


def test_without_room_nothing_is_changed(saved: Path, filled: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    before = snapshot(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DiskFailed):
            restore(saved, filled)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(tmp_path) == before


def test_an_older_schema_is_put_back_and_then_asks_for_its_migration(saved: Path, filled: Path) -> None:
    """As after an update that went wrong: what is restored is what was there, not what this version would like."""
    with closing(sqlite3.connect(saved)) as connection, connection:
        connection.execute("INSERT INTO migrations VALUES ('9999_future', 'x', 0)")
    restore(saved, filled)
    with pytest.raises(SchemaMismatch, match="newer"):
        asyncio.run(contents(filled))


async def test_work_goes_on_after_restoring(saved: Path, filled: Path) -> None:
    await in_thread(restore, saved, filled)
    async with JobStore(filled) as store:
        claims = await store.jobs.claim("worker", limit=5)
        assert [claim.job.prompt for claim in claims] == [LARGE]  # the other's lease has not ended yet
        await store.jobs.complete(claims[0], LARGE)
        assert await store.sweep() == 0
