"""A file that is written anew holds what it held, takes no more room than that, and can shrink from then on."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import DatabaseCorrupt, DatabaseError, DatabaseInUse, InvalidArgument, JobStore, NewJob
from jobstore.health import write_anew
from tests.processes.support import spawn

from .conftest import FILLED, LANE, contents

PROGRAM = """
    import sys
    from jobstore.health import write_anew
    print("begun", flush=True)
    write_anew(sys.argv[1])
"""
MARK = "a text that nobody may find "
TEXTS = [texts for _, *texts in FILLED]
"""Of what a store holds; the lease of the job that runs may end meanwhile, and with it its status."""


def texts_of(path: Path) -> list[list[str | None]]:
    return [texts for _, *texts in asyncio.run(contents(path))]


async def prune_much(path: Path, jobs: int = 100) -> None:
    async with JobStore(path, migrate=True) as store:
        for _ in range(jobs):
            done = await store.jobs.enqueue(MARK * 2000, **LANE)
            await store.jobs.cancel(done.id)
        await store.jobs.prune(older_than=0, status="canceled")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that another program has made, without auto_vacuum."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("INSERT INTO mine VALUES ('kept')")
        connection.commit()
    return path


def test_it_holds_what_it_held_and_takes_no_more_room(filled: Path) -> None:
    asyncio.run(prune_much(filled))
    done = write_anew(filled)
    assert done.before.free > 4_000_000
    assert done.after.free == 0
    assert done.after.total == filled.stat().st_size < 500_000
    assert texts_of(filled) == TEXTS
    assert MARK.encode() not in filled.read_bytes()
    assert filled.stat().st_mode & 0o777 == 0o600


def test_from_then_on_it_shrinks_bit_by_bit(old: Path) -> None:
    asyncio.run(prune_much(old))

    async def vacuum() -> int:
        async with JobStore(old) as store:
            return (await store.vacuum()).after.free

    with pytest.raises(InvalidArgument, match="--full"):
        asyncio.run(vacuum())
    done = write_anew(old)
    assert (done.before.can_shrink, done.after.can_shrink) == (False, True)
    asyncio.run(prune_much(old))
    assert asyncio.run(vacuum()) == 0
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT x FROM mine").fetchall() == [("kept",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_while_a_program_has_it_open_it_is_left_alone(filled: Path) -> None:
    async def work() -> None:
        async with JobStore(filled) as store:
            with pytest.raises(DatabaseInUse):
                await asyncio.to_thread(write_anew, filled)
            await store.jobs.enqueue("later", **LANE)

    asyncio.run(work())
    assert write_anew(filled).after.free == 0


def test_what_is_no_store_is_left_alone(tmp_path: Path, old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(DatabaseError):
        write_anew(old)
    assert old.read_bytes() == before
    (tmp_path / "text.db").write_text("no database " * 1000)
    with pytest.raises(DatabaseCorrupt):
        write_anew(tmp_path / "text.db")
    with pytest.raises(InvalidArgument):
        write_anew("postgresql://me@localhost/jobs")


@pytest.mark.parametrize(
    "rounds", [pytest.param(2, id="a few"), pytest.param(50, marks=[pytest.mark.full, pytest.mark.timeout(1200)])]
)
def test_killed_at_random_points_the_file_is_as_before_or_as_after(filled: Path, rounds: int) -> None:
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311
    killed = 0
    for _ in range(rounds):
        asyncio.run(fill_up(filled))
        process = spawn(PROGRAM, filled)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0, 0.15))  # chance, not a wait: wherever it is by then, it is killed
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode in {0, -signal.SIGKILL}
        killed += process.returncode != 0
        with closing(sqlite3.connect(filled)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert texts_of(filled) == TEXTS
    print(f"killed in the middle: {killed} of {rounds}")
    assert write_anew(filled).after.free == 0


async def fill_up(path: Path) -> None:
    """Leave some free pages."""
    async with JobStore(path) as store:
        await store.jobs.enqueue_many(NewJob(prompt=MARK * 2000, **LANE) for _ in range(60))
        for job in (await store.jobs.list(status="idle", limit=100)).items:
            if job.prompt_bytes == len(MARK) * 2000:
                await store.jobs.cancel(job.id)
        await store.jobs.prune(older_than=0, status="canceled")
