"""Where files lie, who may read them, and that nothing leads out of their folder."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobstore import JobStatus, JobStore, NewJob, OutputError, StatementFailed
from jobstore.testing import FakeClock
from tests.conformance.support import SPILLED, enqueue, eventually, files, outputs_folder, start, streamed

opened: list[str] = []
"""The names of all files that this process opens, while someone watches."""
watched = False


def note(event: str, arguments: tuple[object, ...]) -> None:
    if watched and event == "open":
        opened.append(os.path.basename(str(arguments[0])))  # noqa: PTH119 - a name may be of any kind here


sys.addaudithook(note)


@pytest.fixture
def openings() -> Iterator[list[str]]:
    """The names of the files that are opened during the test."""
    global watched  # noqa: PLW0603 - an audit hook cannot be taken away again
    opened.clear()
    watched = True
    yield opened
    watched = False


# rights and names


async def test_files_and_folders_are_their_owners_alone(store: JobStore, database: Path) -> None:
    before = os.umask(0)
    try:
        claimed = await start(store, SPILLED)
        await store.jobs.complete(claimed, SPILLED)
        async with store.jobs.output(await start(store)) as output:
            await output.write("x")
    finally:
        os.umask(before)
    folder = outputs_folder(store)
    modes = {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert len(files(store)) == 3
    for path, mode in modes.items():
        assert mode == (0o700 if (folder / path).is_dir() else 0o600), path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


async def test_the_folder_lies_beside_the_database_and_is_made_when_it_is_needed(
    store: JobStore, database: Path
) -> None:
    folder = database.with_name(f"{database.name}.outputs")
    await enqueue(store, "small")
    assert not folder.exists()
    job = await enqueue(store, SPILLED)
    assert (folder / job.prompt_file_path).read_bytes() == SPILLED.encode()


async def test_prompts_and_responses_lie_in_folders_of_their_own_under_relative_names(store: JobStore) -> None:
    claimed = await start(store, SPILLED)
    done = await store.jobs.complete(claimed, SPILLED)
    assert claimed.job.prompt_file_path.startswith("prompts/")
    assert done.output_file_path.startswith("responses/")
    for path in (claimed.job.prompt_file_path, done.output_file_path):
        assert done.id in path
        assert len(path.split("/")) == 3


async def test_two_attempts_never_share_a_file(store: JobStore, clock: FakeClock) -> None:
    claimed = await start(store)
    async with store.jobs.output(claimed) as zombie:
        await zombie.write("the zombie's")
        clock.advance(30)
        [successor] = await store.jobs.claim("worker-2")
        await streamed(store, successor, "the successor's")
        await store.jobs.complete(successor)
        await zombie.write(" and more")
    assert await store.jobs.read_response(claimed.job_id) == "the successor's"


async def test_a_folder_can_be_chosen(database: Path, tmp_path: Path) -> None:
    async with JobStore(database, migrate=True, outputs=tmp_path / "elsewhere") as store:
        job = await enqueue(store, SPILLED)
        assert (tmp_path / "elsewhere" / job.prompt_file_path).exists()


async def test_a_relative_folder_stays_where_it_was_when_the_program_moves(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = await asyncio.to_thread(JobStore, database, migrate=True, outputs="relative")  # asks where we are
    async with made as store:
        (tmp_path / "another").mkdir()
        monkeypatch.chdir(tmp_path / "another")
        job = await enqueue(store, SPILLED)
        assert (tmp_path / "relative" / job.prompt_file_path).exists()


# the order of files and rows


async def test_a_row_that_is_refused_leaves_no_file(store: JobStore) -> None:
    claimed = await start(store)
    for event in ("INSERT", "UPDATE"):
        await store.execute(
            f"CREATE TRIGGER refuse_{event} BEFORE {event} ON background_jobs BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    for call in (
        lambda: enqueue(store, SPILLED),
        lambda: store.jobs.enqueue_many([NewJob(prompt=SPILLED, task_type="t", api_type="a")]),
        lambda: store.jobs.complete(claimed, SPILLED),
        lambda: store.jobs.record(SPILLED, task_type="t", api_type="a").__aenter__(),
    ):
        with pytest.raises(StatementFailed):
            await call()
    await eventually(lambda: not files(store))


async def test_no_file_goes_before_its_row(store: JobStore, clock: FakeClock) -> None:
    session = await store.sessions.create(name="demo", project_directory="/a")
    done = await start(store, SPILLED, session_id=session.id)
    await store.jobs.complete(done, SPILLED)
    running = await start(store, SPILLED)
    await streamed(store, running, "small")
    names = files(store)
    await store.execute("CREATE TRIGGER keep BEFORE DELETE ON background_jobs BEGIN SELECT RAISE(ABORT, 'no'); END")
    await store.execute("CREATE TRIGGER hold BEFORE UPDATE ON job_attempts BEGIN SELECT RAISE(ABORT, 'no'); END")
    clock.advance(1)
    for call in (
        lambda: store.jobs.prune(older_than=0),
        lambda: store.sessions.delete(session.id),
        lambda: store.jobs.complete(running),
    ):
        with pytest.raises(StatementFailed):
            await call()
    assert await store.jobs.read_response(running.job_id) == "small"
    folder = outputs_folder(store)
    await store.close()  # it waits for what is to be removed
    assert all((folder / name).exists() for name in names)


# whose folder it is


async def test_another_stores_folder_is_refused(store: JobStore, tmp_path: Path) -> None:
    await enqueue(store, SPILLED)
    theirs = JobStore(tmp_path / "another.db", migrate=True, outputs=outputs_folder(store))
    with pytest.raises(OutputError) as refusal:
        await theirs.open()
    assert str(outputs_folder(store)) in str(refusal.value)
    assert len(files(store)) == 1


async def test_a_folder_that_another_store_took_meanwhile_is_refused_before_anything_is_written(
    store: JobStore, tmp_path: Path
) -> None:
    async with JobStore(tmp_path / "another.db", migrate=True, outputs=outputs_folder(store)) as theirs:
        await enqueue(store, SPILLED)
        with pytest.raises(OutputError):
            await enqueue(theirs, SPILLED)
        assert await theirs.jobs.count() == 0
    assert len(files(store)) == 1


@pytest.mark.parametrize("marker", ["", "another", "\xff\xfe"])
async def test_a_marker_that_is_not_ours_is_refused(store: JobStore, database: Path, marker: str) -> None:
    await enqueue(store, SPILLED)
    (outputs_folder(store) / "store_id").write_bytes(marker.encode("latin-1"))
    with pytest.raises(OutputError):
        await JobStore(database).open()


async def test_a_file_in_the_folders_place_is_refused(database: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        await JobStore(database, migrate=True, outputs=tmp_path / "file").open()


async def test_a_folder_whose_parent_is_missing_is_refused_by_name(database: Path, tmp_path: Path) -> None:
    async with JobStore(database, migrate=True, outputs=tmp_path / "no" / "outputs") as store:
        with pytest.raises(OutputError) as refusal:
            await enqueue(store, SPILLED)
        assert str(tmp_path / "no") in str(refusal.value)
        assert await store.jobs.count() == 0


async def test_a_file_that_waited_too_long_is_not_named_any_more(database: Path) -> None:
    hours = iter(range(0, 10_000, 13))

    def clock() -> int:
        return next(hours) * 3600 * 1000

    async with JobStore(database, migrate=True, clock=clock) as store:
        with pytest.raises(OutputError):
            await enqueue(store, SPILLED)
        assert await store.jobs.count() == 0
        await eventually(lambda: not files(store))


# what leads out of the folder


def outside(folder: Path) -> Path:
    return folder.parent / "outside" / "outside.txt"


def plant(folder: Path) -> None:
    """Put a file outside, and links that lead to it inside."""
    outside(folder).parent.mkdir()
    outside(folder).write_text("outside")
    (folder / "responses" / "zz").mkdir(mode=0o700, parents=True)
    (folder / "responses" / "zz" / "link.txt").symlink_to(outside(folder))
    (folder / "responses" / "linked").symlink_to(outside(folder).parent)
    (folder / "links").symlink_to(outside(folder).parent.parent)


ESCAPES = [
    "{outside}",
    "../outside/outside.txt",
    "responses/../../outside/outside.txt",
    "responses/zz/link.txt",
    "responses/linked/outside.txt",
    "links/outside/outside.txt",
    "/{outside}",
    "responses/{outside}",
    "responses/zz/../../../outside/outside.txt",
    "./../outside/outside.txt",
    "responses//zz/link.txt",
    "responses\\..\\..\\outside\\outside.txt",
    "C:outside.txt",
    "nul\0/outside.txt",
    "../outside/outside.txt\0.txt",
    ".",
    "..",
    "",
    "responses",
    "responses/zz",
    "store_id",
    "x" * 5000,
]


async def point_to(store: JobStore, job_id: str, path: str) -> str:
    """Let all that a job names as a file be this path, as someone who edits the database might."""
    path = path.format(outside=outside(outputs_folder(store)))
    parameters = {"path": path, "id": job_id}
    await store.execute(
        "UPDATE background_jobs SET prompt_file_path = :path, output_file_path = :path WHERE id = :id", parameters
    )
    await store.execute("UPDATE job_attempts SET output_file_path = :path WHERE job_id = :id", parameters)
    return path


async def test_an_opening_would_be_seen(store: JobStore, openings: list[str]) -> None:
    job = await enqueue(store, SPILLED)
    openings.clear()
    await store.jobs.read_prompt(job.id)
    assert job.prompt_file_path.rpartition("/")[2] in openings


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda path: repr(path)[:40])
@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.RUNNING])
async def test_a_path_out_of_the_folder_is_refused_and_never_opened(
    store: JobStore, openings: list[str], escape: str, status: JobStatus
) -> None:
    claimed = await start(store, SPILLED)
    await streamed(store, claimed, SPILLED)
    if status is JobStatus.COMPLETED:
        await store.jobs.complete(claimed)
    elif status is JobStatus.FAILED:
        await store.jobs.fail(claimed, "no")
    plant(outputs_folder(store))
    await asyncio.to_thread(outside(outputs_folder(store)).touch)
    path = await point_to(store, claimed.job_id, escape)
    openings.clear()
    for read in (
        store.jobs.read_prompt,
        store.jobs.read_response,
        lambda job_id: anext(store.jobs.open_response(job_id)),
        lambda job_id: anext(store.jobs.tail(job_id)),
    ):
        with pytest.raises(OutputError) as refusal:
            await read(claimed.job_id)
        assert refusal.value.path == path
    if status is JobStatus.RUNNING:
        with pytest.raises(OutputError):
            await store.jobs.complete(claimed)
    assert "outside.txt" not in openings
    assert (await store.jobs.get(claimed.job_id)).status is status


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda path: repr(path)[:40])
async def test_a_prompt_out_of_the_folder_fails_its_job_when_it_is_claimed(
    store: JobStore, openings: list[str], escape: str
) -> None:
    bad, good = await enqueue(store, SPILLED), await enqueue(store, SPILLED)
    plant(outputs_folder(store))
    await point_to(store, bad.id, escape)
    openings.clear()
    assert [claim.job_id for claim in await store.jobs.claim("worker-1", limit=2)] == [good.id]
    assert (await store.jobs.get(bad.id)).error_type == "prompt_unreadable"
    assert "outside.txt" not in openings


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda path: repr(path)[:40])
async def test_pruning_removes_nothing_out_of_the_folder(store: JobStore, clock: FakeClock, escape: str) -> None:
    claimed = await start(store, SPILLED)
    await streamed(store, claimed, SPILLED)
    await store.jobs.complete(claimed)
    folder = outputs_folder(store)
    plant(folder)
    await point_to(store, claimed.job_id, escape)
    clock.advance(1)
    assert await store.jobs.prune(older_than=0) == 1
    await store.close()  # it waits for what is to be removed
    assert outside(folder).read_text() == "outside"
    assert (folder / "store_id").exists()
    assert (folder / "responses").is_dir()


async def test_a_pipe_in_a_files_place_is_refused_and_waits_for_nobody(store: JobStore) -> None:
    claimed = await start(store)
    done = await store.jobs.complete(claimed, SPILLED)
    path = outputs_folder(store) / done.output_file_path
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OutputError) as refusal:
        await store.jobs.read_response(done.id)
    assert refusal.value.path == done.output_file_path


async def test_reading_leaves_no_file_open(store: JobStore) -> None:
    claimed = await start(store, SPILLED)
    done = await store.jobs.complete(claimed, SPILLED * 20)
    failed = await start(store)
    await streamed(store, failed, "x")
    await point_to(store, failed.job_id, "responses")

    async def read_all() -> None:
        await store.jobs.read_prompt(done.id)
        await store.jobs.read_response(done.id)
        await anext(store.jobs.open_response(done.id))
        await anext(store.jobs.tail(done.id))
        with pytest.raises(OutputError):
            await store.jobs.read_response(failed.job_id)

    await read_all()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count of descriptors
    for _ in range(10):
        await read_all()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
