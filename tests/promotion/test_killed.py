"""A copy that is killed at random points goes on, and ends with two stores that are the same. Also at full size."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobstore import Claim, JobStore, NewJob
from jobstore.promotion import Promotion
from tests.processes.support import PEAK_MEMORY, finish, spawn

from .support import LANE, fill, migrate, rows_of

PROGRAM = f"""{PEAK_MEMORY}
import asyncio, sys
from jobstore.promotion import promote

source, target, source_outputs, target_outputs = sys.argv[1:]
report = lambda told: print(*told, flush=True)
done = asyncio.run(promote(
    source, target, source_outputs=source_outputs, target_outputs=target_outputs, report=report))
print(peak_memory())
print(done.model_dump_json())
"""

MOST_MEMORY = 256 * 1024
"""In KiB. 100,000 jobs took 134 MB (measured), the interpreter and its libraries included."""

Arguments = tuple[object, ...]


def to_the_end(arguments: Arguments) -> tuple[Promotion, int, int]:
    """Run a copy; return what it did, how often it told something, and how much memory it took, in KiB."""
    code, output, errors = finish(spawn(PROGRAM, *arguments), within=900)
    assert code == 0, errors
    *told, memory, done = output.splitlines()
    assert int(memory) < MOST_MEMORY
    return Promotion.model_validate_json(done), len(told), int(memory)


def kill_after(lines: int, arguments: Arguments) -> str:
    """Kill a copy once it has told something so often; return what it told last."""
    process = spawn(PROGRAM, *arguments)
    assert process.stdout is not None
    line = ""
    for _ in range(lines):
        line = process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return line.strip()


def killed_and_finished(arguments: Arguments, told: int, kills: int, chance: random.Random) -> Promotion:
    """Kill a copy at random points, later and later, and run it once more."""
    for lines in sorted(chance.randint(1, told) for _ in range(kills)):
        print(f"killed at: {kill_after(lines, arguments)}")
    started = time.monotonic()
    done, _, memory = to_the_end(arguments)
    print(f"finished within {time.monotonic() - started:.1f} s, {memory / 1024:.0f} MB at most")
    return done


async def fill_with(path: Path, jobs: int, files: int) -> None:
    """Make a store of so many jobs, a fifth of them done, and so many answers in files."""
    async with JobStore(path, migrate=True) as store:
        await fill(store)
        for begin in range(0, jobs, 1000):
            count = min(1000, jobs - begin)
            await store.jobs.enqueue_many(NewJob(prompt=f"prompt {begin + n}", **LANE) for n in range(count))
        for number, claim in enumerate(await _claims(store, jobs // 5)):
            await store.jobs.complete(claim, f"{number:05} " * 15_000 if number < files else f"answer {number}")


async def _claims(store: JobStore, count: int) -> list[Claim]:
    claims: list[Claim] = []
    while len(claims) < count and (more := await store.jobs.claim("worker", limit=min(1000, count - len(claims)))):
        claims += more
    return claims


async def jobs_of(path: Path) -> dict[str, Mapping[str, Any]]:
    async with JobStore(path) as store:
        return {row["id"]: row for row in (await rows_of(store))["background_jobs"]}


@pytest.mark.parametrize(
    ("jobs", "files", "kills"),
    [
        pytest.param(2_000, 30, 3, id="2,000 jobs"),
        pytest.param(100_000, 1_000, 10, id="100,000 jobs", marks=[pytest.mark.full, pytest.mark.timeout(3000)]),
    ],
)
def test_a_copy_that_is_killed_at_random_points_goes_on_there_and_back(
    tmp_path: Path, fresh_database: str, jobs: int, files: int, kills: int
) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    source, back, probe = (tmp_path / name for name in ("source.db", "back.db", "probe.db"))
    outputs, texts = f"{source}.outputs", tmp_path / "texts"
    asyncio.run(fill_with(source, jobs, files))
    for url in (fresh_database, back, probe):
        migrate(url)
    started = time.monotonic()
    expected, told, memory = to_the_end((source, probe, outputs, f"{probe}.outputs"))
    print(f"from file to file undisturbed: {time.monotonic() - started:.1f} s, {memory / 1024:.0f} MB at most")

    there = killed_and_finished((source, fresh_database, outputs, texts), told, kills, chance)
    again = killed_and_finished((fresh_database, back, texts, f"{back}.outputs"), told, kills, chance)
    assert again.tables == there.tables
    assert {name: found.rows for name, found in there.tables.items()} == {
        name: found.rows for name, found in expected.tables.items()
    }
    assert there.files == again.files >= expected.files
    here, came_back = asyncio.run(jobs_of(source)), asyncio.run(jobs_of(back))
    differing = [job_id for job_id, row in came_back.items() if row != here[job_id]]
    assert len(differing) == 1  # whose texts hold NUL, and are in files since they were on the server
    assert here.keys() == came_back.keys()


def test_a_full_disk_is_told_and_the_copy_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The limit on the size of files is a full disk for one process alone."""
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    asyncio.run(fill_with(source, 2_000, 10))
    migrate(target)
    limited = PROGRAM.replace(
        "source, target, ",
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))\nsource, target, ",
        1,
    )
    arguments = (source, target, f"{source}.outputs", f"{target}.outputs")
    code, _, errors = finish(spawn(limited, *arguments))
    assert code == 1
    assert errors.splitlines()[-1].startswith("jobstore.errors.Disk")  # a file may not grow: full, or failed
    done, _, _ = to_the_end(arguments)
    assert done.changed
    assert done.tables["background_jobs"].rows > 2_000
