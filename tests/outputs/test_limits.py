"""How large an answer may be, and how much room is kept for what is under way."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobstore import Claim, DiskFull, DiskLow, JobStatus, JobStore, NewJob, OutputTooLarge, StoreClosed, disk
from jobstore.aio import in_thread
from jobstore.workers import JobContext, Worker, never
from tests.conformance.support import eventually

LANE: dict[str, Any] = {"task_type": "task", "api_type": "api"}
LIMIT = 10_000


async def begin(store: JobStore) -> Claim:
    await store.jobs.enqueue("p", **LANE)
    [claim] = await store.jobs.claim("worker")
    return claim


async def test_a_stream_ends_at_the_piece_that_passes_the_limit(database: Path) -> None:
    async with JobStore(database, migrate=True, max_output_bytes=LIMIT, inline_limit=100) as store:
        claim = await begin(store)
        with pytest.raises(OutputTooLarge, match="10,000 bytes") as caught:
            await _write_too_much(store, claim)
        assert caught.value.limit == LIMIT
        assert caught.value.path is not None
        with pytest.raises(OutputTooLarge):
            await store.jobs.complete(claim)  # it would pass for whole
        job = await store.jobs.fail(claim, caught.value)
        assert (job.status, job.error_type) == (JobStatus.FAILED, "OutputTooLarge")
        assert await store.jobs.read_response(job.id) == "a" * 6_000 + "ä" * 2_000


async def _write_too_much(store: JobStore, claim: Claim) -> None:
    async with store.jobs.output(claim) as output:
        await output.write("a" * 6_000)
        await output.write("ä" * 2_000)  # exactly the limit: bytes count
        for piece in ("b", "c"):
            with pytest.raises(OutputTooLarge):
                await output.write(piece)


async def test_an_answer_of_one_piece_is_refused_as_well(database: Path) -> None:
    async with JobStore(database, migrate=True, max_output_bytes=LIMIT, inline_limit=100) as store:
        claim = await begin(store)
        with pytest.raises(OutputTooLarge):
            await store.jobs.complete(claim, "x" * (LIMIT + 1))
        assert (await store.jobs.get(claim.job_id)).status is JobStatus.RUNNING
        assert (await store.jobs.complete(claim, "x" * LIMIT)).status is JobStatus.COMPLETED
        await store.jobs.enqueue("x" * (LIMIT + 1), **LANE)  # a prompt is no answer


async def test_a_workers_attempt_fails_and_keeps_what_it_wrote(database: Path) -> None:
    async with JobStore(database, migrate=True, max_output_bytes=LIMIT) as store:
        worker = Worker(store)

        @worker.handles("task", retry=never)
        async def run_away(job: JobContext) -> None:
            while True:
                await job.write("1234567" * 1_000)

        job = await store.jobs.enqueue("p", **LANE)
        await worker.run(drain=True)
        job = await store.jobs.get(job.id)
        assert (job.status, job.error_type) == (JobStatus.FAILED, "OutputTooLarge")
        assert await store.jobs.read_response(job.id) == "1234567" * 1_000


async def test_with_little_room_nothing_is_begun_and_all_can_be_finished(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with JobStore(database, migrate=True, min_free_bytes=0) as store:
        claims = [await begin(store) for _ in range(3)]
        await store.jobs.enqueue("waits", **LANE)
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.0)
    async with JobStore(database, min_free_bytes=2**50) as store:
        for begins in (
            lambda: store.jobs.enqueue("p", **LANE),
            lambda: store.jobs.enqueue_many([NewJob(prompt="p", **LANE)]),
            lambda: store.jobs.claim("worker"),
            lambda: store.jobs.record("p", **LANE).__aenter__(),
        ):
            with pytest.raises(DiskLow, match="min_free_bytes") as caught:
                await begins()
            assert isinstance(caught.value, DiskFull)
            assert caught.value.free < caught.value.least == 2**50
            assert caught.value.folder == str(database.parent)
        assert await store.jobs.count() == 4
        async with store.jobs.output(claims[0]) as output:
            await output.write("answer " * 20_000)
        assert (await store.jobs.complete(claims[0])).status is JobStatus.COMPLETED
        assert (await store.jobs.fail(claims[1], "no")).status is JobStatus.FAILED
        assert [beat.extended for beat in await store.jobs.heartbeat([claims[2]])] == [True]
        assert (await store.jobs.release(claims[2])).status is JobStatus.IDLE


async def test_the_disk_is_looked_at_once_a_second_at_most(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []
    usage = disk.shutil.disk_usage

    def counted(path: Path) -> Any:  # noqa: ANN401 - a private type of the library
        looks.append(path)
        return usage(path)

    monkeypatch.setattr(disk, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(disk.shutil, "disk_usage", counted)
    async with JobStore(database, migrate=True, outputs=database.parent / "texts") as store:
        await asyncio.gather(*(store.jobs.enqueue("p", **LANE) for _ in range(50)))
        await store.jobs.claim("worker", limit=50)
    assert looks == [database.parent] * 2  # the folder of texts is not made yet: its parent


async def test_a_store_that_is_closed_looks_at_no_disk(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.0)
    async with JobStore(database, migrate=True) as store:
        jobs = store.jobs
    with pytest.raises(StoreClosed):
        await jobs.enqueue("p", **LANE)
    assert not jobs._backend._background


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(folder)]
    try:
        made = subprocess.run(mount, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no way to mount a disk")
    if made.returncode != 0:
        pytest.skip("only root can mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - of the system


async def test_a_worker_says_so_once_and_goes_on_when_there_is_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("jobstore.workers.worker.RETRY_SECONDS", 0.01)
    ballast = small_disk / "ballast"
    async with JobStore(small_disk / "jobs.db", migrate=True, min_free_bytes=20_000_000) as store:
        worker = Worker(store)

        @worker.handles("task")
        async def answer(_job: JobContext) -> str:
            return "answer"

        job = await store.jobs.enqueue("p", **LANE)
        await in_thread(ballast.write_bytes, bytes(30_000_000))

        async def is_refused() -> bool:
            try:
                await store.jobs.claim("other", task_types=["nothing"])
            except DiskLow:
                return True
            return False

        await eventually(is_refused)
        with caplog.at_level(logging.INFO):
            running = asyncio.create_task(worker.run())
            while caplog.text.count("cannot claim") < 1:
                await asyncio.sleep(0)
            for _ in range(5):
                with pytest.raises(DiskLow):
                    await store.jobs.claim("other")
            await in_thread(ballast.unlink)
            done = await store.jobs.wait(job.id)
            worker.stop()
            await running
        assert done.status is JobStatus.COMPLETED
        assert caplog.text.count("cannot claim, trying again") == 1
        assert caplog.text.count("can claim again") == 1
