"""A check changes nothing, disturbs nobody, and says what it could not look at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobstore import DatabaseError, DatabaseInUse, DatabaseNotFound, InvalidArgument, JobStore, NewJob
from jobstore.aio import in_thread
from jobstore.health import Report, check, repair
from jobstore.health.checks import SQLITE_CHECKS
from jobstore.health.checks.files import has_reset_defect
from jobstore.migrate import Migrator
from jobstore.progress import Progress
from tests.checking.support import execute
from tests.processes.support import finish, spawn

WORKER = """
    import asyncio, sys
    from jobstore import JobStore
    from jobstore.workers import JobContext, Worker

    async def main(url):
        async with JobStore(url) as store:
            worker = Worker(store, concurrency=8)

            @worker.handles("task")
            async def handle(job: JobContext) -> str:
                await job.write("streamed ")
                return "answer" if int(job.prompt) % 10 else "large " * 20_000

            print("working", flush=True)
            await worker.run(drain=True)

    asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def migrated(database: Path) -> Path:
    Migrator(database).run()
    return database


@pytest.mark.parametrize("jobs", [400, pytest.param(5_000, marks=pytest.mark.full)])
async def test_beside_working_workers_neither_meets_an_error(migrated: Path, jobs: int) -> None:
    async with JobStore(migrated) as store:
        await store.jobs.enqueue_many([NewJob(prompt=str(n), task_type="task", api_type="a") for n in range(jobs)])
        workers = [spawn(WORKER, migrated) for _ in range(4)]
        checked = 0
        while checked == 0 or any(worker.poll() is None for worker in workers):
            report = await in_thread(check, migrated)
            assert report.ok, report.failed
            checked += 1
        for worker in workers:
            code, _, errors = await in_thread(finish, worker)
            assert (code, errors) == (0, "")
        assert await store.jobs.count(status="completed") == jobs
    assert (await in_thread(check, migrated)).ok
    print(f"{checked} checks")


def test_it_changes_nothing(copied: Path) -> None:
    before = {file.name: file.read_bytes() for file in copied.parent.iterdir() if file.is_file()}
    assert check(copied).ok
    assert {file.name: file.read_bytes() for file in copied.parent.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("logged", [False, True])
def test_a_copy_that_cannot_be_written_is_checked_too(
    public_folder: Path, run_as_nobody: Callable[[str, Path], str], *, logged: bool
) -> None:
    path = public_folder / "jobs.db"
    Migrator(path).run()
    if logged:
        Path(f"{path}-wal").write_bytes(b"\0" * 32)
    for place in public_folder.iterdir():
        place.chmod(0o444)
    output = run_as_nobody("from jobstore.health import check\nprint(check(path).model_dump_json())", path)
    found = {finding.name: finding.ok for finding in Report.model_validate_json(output).findings}
    assert found["integrity"]
    assert found["schema"]
    assert ("log-reading" in found) == logged


def test_a_quick_check_leaves_out_what_grows_with_the_database(copied: Path) -> None:
    report = check(copied, quick=True)
    names = {finding.name for finding in report.findings}
    assert report.ok
    assert names == {entry.name for entry in SQLITE_CHECKS if entry.quick}
    assert not names & {"integrity", "foreign-keys", "jobs", "attempts", "json", "texts", "orphans", "log"}


def test_it_tells_how_far_it_has_come(copied: Path) -> None:
    told: list[Progress] = []
    check(copied, tell=told.append)
    checks = [(done, total) for stage, done, total in told if stage == "checks"]
    assert checks == [(n, len(SQLITE_CHECKS)) for n in range(len(SQLITE_CHECKS) + 1)]
    assert ("texts", 20, 20) in told


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    for act in (check, repair):
        with pytest.raises(DatabaseNotFound):
            act(tmp_path / "none.db")
        with pytest.raises(DatabaseNotFound):
            act(tmp_path / "no" / "none.db")
        with pytest.raises(InvalidArgument):
            act("mysql://host/db")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_gets_nothing_beside_it(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("no database\n")
    assert not check(text).ok
    with pytest.raises(DatabaseNotFound):
        check(tmp_path)
    assert list(tmp_path.iterdir()) == [text]
    assert not Path(f"{tmp_path}.owner").exists()


@pytest.mark.parametrize("act", [check, repair])
def test_what_cannot_be_opened_is_an_error(tmp_path: Path, act: Callable[[Path], object]) -> None:
    with pytest.raises(DatabaseNotFound):
        act(tmp_path / ("x" * 300))  # longer than a name can be
    folder = tmp_path.joinpath(*["x" * 200] * 3)
    folder.mkdir(parents=True)
    path = folder / "jobs.db"
    path.touch(mode=0o600)
    with pytest.raises(DatabaseError, match="cannot be opened"):
        act(path)  # longer than SQLite opens
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.db")
        with pytest.raises(DatabaseNotFound, match="regular file"):
            act(tmp_path / "pipe.db")


async def test_a_store_that_is_in_use_is_not_repaired(migrated: Path) -> None:
    async with JobStore(migrated):
        with pytest.raises(DatabaseInUse):
            await in_thread(repair, migrated)
        assert (await in_thread(check, migrated)).ok


def test_a_table_that_cannot_be_read_keeps_no_other_check_from_being_made(migrated: Path) -> None:
    execute(migrated, "DROP TABLE workers")
    report = check(migrated)
    assert {finding.name for finding in report.failed} == {"schema", "workers", "json"}
    assert len(report.findings) == len(SQLITE_CHECKS)


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_the_versions_with_the_reset_defect_are_known(version: tuple[int, int, int], *, has_it: bool) -> None:
    assert has_reset_defect(version) is has_it
