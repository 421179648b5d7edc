"""Sweeping: files that no row names go when they are old, and no file that one names ever does."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from jobstore import Claim, JobStore, LeaseLost
from jobstore.outputs import SWEEP_AGE
from jobstore.testing import FakeClock
from tests.conformance.support import SPILLED, claim, enqueue, eventually, files, outputs_folder, start, streamed

OLD = SWEEP_AGE + 60


def age(folder: Path, path: str, seconds: float = OLD) -> None:
    """Let a file be last written so many seconds ago."""
    then = time.time() - seconds
    os.utime(folder / path, (then, then))


def plant(folder: Path, path: str, seconds: float = OLD) -> str:
    """Put a file there that no row names."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("an orphan")
    age(folder, path, seconds)
    return path


async def test_old_files_that_no_row_names_go(store: JobStore) -> None:
    folder = outputs_folder(store)
    for path in ("prompts/00/a.txt", "responses/ff/b.txt", "responses/ff/b.txt.part", "prompts/zz/strange"):
        plant(folder, path)
    assert await store.sweep() == 4
    assert files(store) == set()
    assert await store.sweep() == 0


async def test_young_files_stay(store: JobStore) -> None:
    young = plant(outputs_folder(store), "prompts/00/a.txt", SWEEP_AGE - 60)
    future = plant(outputs_folder(store), "prompts/00/b.txt", -3600)
    assert await store.sweep() == 0
    assert files(store) == {young, future}


async def test_a_store_without_a_folder_has_nothing_to_sweep(store: JobStore) -> None:
    assert await store.sweep() == 0
    assert not outputs_folder(store).exists()


async def test_thousands_of_orphans_go_and_what_lies_between_them_stays(store: JobStore) -> None:
    job = await enqueue(store, SPILLED)
    folder = outputs_folder(store)
    parent = job.prompt_file_path.rpartition("/")[0]
    for number in range(1200):
        plant(folder, f"{parent}/{number:04}.txt")
    age(folder, job.prompt_file_path)
    assert await store.sweep() == 1200
    assert files(store) == {job.prompt_file_path}


async def test_every_file_that_a_row_names_stays_however_old(store: JobStore) -> None:
    waiting = await enqueue(store, SPILLED)
    finished = await start_next(store, waiting.id)
    done = await store.jobs.complete(finished, SPILLED)
    failed = await start(store, SPILLED)
    await streamed(store, failed, "a partial")
    await store.jobs.fail(failed, "no")
    retried = await start(store, SPILLED)
    await store.jobs.complete(retried, SPILLED)
    await store.jobs.retry(retried.job_id)
    again = await claim(store, retried.job)
    named = files(store)
    async with store.jobs.output(again) as output:
        await output.write("so far")
        for path in files(store):
            age(outputs_folder(store), path)
        assert await store.sweep() == 0
        assert named < files(store)
        await output.write(", so good")
    assert await store.jobs.read_response(again.job_id) == "so far, so good"
    assert await store.jobs.read_response(done.id) == SPILLED
    assert await store.jobs.read_response(failed.job_id) == "a partial"


async def start_next(store: JobStore, job_id: str) -> Claim:
    [claimed] = await store.jobs.claim("worker-1")
    assert claimed.job_id == job_id
    return claimed


async def test_the_draft_of_a_job_with_another_answer_is_an_orphan(store: JobStore) -> None:
    claimed = await start(store)
    await streamed(store, claimed, "a draft")
    [draft] = files(store)
    done = await store.jobs.complete(claimed, SPILLED)
    age(outputs_folder(store), draft)
    assert await store.sweep() == 1
    assert files(store) == {done.output_file_path}


async def test_a_linked_folder_is_not_swept(store: JobStore, tmp_path: Path) -> None:
    plant(tmp_path / "elsewhere", "kept.txt")
    (outputs_folder(store) / "responses").mkdir(parents=True)
    (outputs_folder(store) / "responses" / "ab").symlink_to(tmp_path / "elsewhere")
    assert await store.sweep() == 0
    assert (tmp_path / "elsewhere" / "kept.txt").exists()


async def test_a_link_among_the_files_goes_and_what_it_leads_to_stays(store: JobStore, tmp_path: Path) -> None:
    plant(tmp_path, "kept.txt")
    folder = outputs_folder(store) / "responses" / "ab"
    folder.mkdir(parents=True)
    (folder / "link.txt").symlink_to(tmp_path / "kept.txt")
    then = time.time() - OLD
    os.utime(folder / "link.txt", (then, then), follow_symlinks=False)
    assert await store.sweep() == 1
    assert (tmp_path / "kept.txt").exists()


async def test_two_sweeps_at_once_remove_each_orphan_once(store: JobStore) -> None:
    for number in range(300):
        plant(outputs_folder(store), f"prompts/{number % 7:02}/{number}.txt")
    assert sum(await asyncio.gather(store.sweep(), store.sweep(), store.sweep())) == 300
    assert files(store) == set()


# beside everything else


class Life:
    """Programs that use a store at the same time, each step chosen by chance; `names` is what must be there."""

    def __init__(self, store: JobStore, clock: FakeClock, chance: random.Random) -> None:
        self.store = store
        self.clock = clock
        self.chance = chance
        self.ended = asyncio.Event()
        self.done = 0

    async def use(self, steps: int) -> None:
        for _ in range(steps):
            await self.chance.choice([self.enqueue, self.work, self.work, self.record, self.retry, self.prune])()
            self.done += 1

    async def enqueue(self) -> None:
        await enqueue(self.store, self.text(), idempotency_key=self.chance.choice([None, None, "a", "b"]))

    async def work(self) -> None:
        for claimed in await self.store.jobs.claim("worker-1", limit=2, lease=30):
            try:
                await self.end(claimed)
            except LeaseLost:
                continue  # pruned, or another has it

    async def end(self, claimed: Claim) -> None:
        if self.chance.random() < 0.7:
            async with self.store.jobs.output(claimed) as output:
                await output.write(self.text())
                await asyncio.sleep(0)
                await output.write("the end")
        match self.chance.randrange(5):
            case 0:
                await self.store.jobs.fail(claimed, "no", retry_in=0)
            case 1:
                await self.store.jobs.release(claimed)
            case 2:
                await self.store.jobs.complete(claimed, self.text())
            case 3:
                await self.store.jobs.complete(claimed)
            case _:
                self.clock.advance(31)

    async def record(self) -> None:
        try:
            async with self.store.jobs.record(self.text(), task_type="t", api_type="a") as call:
                await call.write(self.text())
        except LeaseLost:
            return  # pruned after another's claim had rescued it

    async def retry(self) -> None:
        for job in (await self.store.jobs.list(status=["completed", "failed"], limit=2)).items:
            await asyncio.gather(self.store.jobs.retry(job.id), return_exceptions=True)

    async def prune(self) -> None:
        if self.chance.random() < 0.3:
            await self.store.jobs.prune(older_than=self.chance.choice([0, 60]))

    def text(self) -> str:
        return self.chance.choice(["small", SPILLED, SPILLED * 3])


async def named_files(store: JobStore) -> set[str]:
    """Return the files that rows name, read in one statement."""
    rows = await store.execute(
        """
        SELECT prompt_file_path AS path FROM background_jobs UNION SELECT output_file_path FROM background_jobs
        UNION SELECT output_file_path FROM job_attempts
        """
    )
    return {row["path"] for row in rows} - {None}


async def check_named_files_are_there(store: JobStore) -> int:
    """Check that each named file lies there as long as it is named; return how many are."""
    named = await named_files(store)
    missing = named - await asyncio.to_thread(files, store)
    assert missing & await named_files(store) == set()
    return len(named)


async def age_all(store: JobStore) -> None:
    """Make old what rows name: from now on, only their naming keeps the files."""
    folder = outputs_folder(store)
    for path in await named_files(store):
        try:
            await asyncio.to_thread(age, folder, path)
        except FileNotFoundError:
            continue  # pruned meanwhile


@pytest.mark.parametrize("seed", range(3))
async def test_no_file_that_a_row_names_goes_while_everything_happens_at_once(
    store: JobStore, clock: FakeClock, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a story, no secret
    life = Life(store, clock, chance)
    folder = outputs_folder(store)
    orphans = 0

    async def sweep_and_check() -> int:
        nonlocal orphans
        checked = 0
        while not life.ended.is_set():
            await age_all(store)
            for _ in range(3):
                await asyncio.to_thread(plant, folder, f"responses/00/orphan {orphans}.txt")
                orphans += 1
            await store.sweep()
            checked += await check_named_files_are_there(store)
        return checked

    sweeper = asyncio.create_task(sweep_and_check())
    await asyncio.gather(*(life.use(25) for _ in range(6)))
    life.ended.set()
    assert await sweeper > 0
    await store.sweep()

    named = await named_files(store)
    await eventually(lambda: {path for path in files(store) if "orphan" in path} == set())
    assert named <= files(store)
    for job in (await store.jobs.list(limit=1000)).items:
        await store.jobs.read_prompt(job.id)
        await store.jobs.read_response(job.id)
    for path in files(store):
        age(folder, path)
    await store.sweep()
    assert files(store) == named
