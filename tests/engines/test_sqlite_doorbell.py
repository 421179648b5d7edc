"""Processes on one file tell each other of their commits at once, and do without where that is not possible."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Self

import pytest

from jobstore import JobStore
from jobstore.engines import sqlite
from jobstore.engines.sqlite_doorbell import Doorbell
from tests.processes.support import spawn

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")


class Rings:
    """A doorbell, and what was heard of it."""

    def __init__(self, database: Path) -> None:
        self.bell = Doorbell(database, self._hear)
        self.heard: asyncio.Queue[bool] = asyncio.Queue()

    def _hear(self, *, work: bool) -> None:
        self.heard.put_nowait(work)

    async def ring(self, *, work: bool) -> None:
        await asyncio.to_thread(self.bell.ring, work=work)

    async def __aenter__(self) -> Self:
        assert await asyncio.to_thread(self.bell.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.bell.close)


def sockets(database: Path) -> list[Path]:
    return list(Path(f"{database}.wake").iterdir())


async def test_the_others_hear_it_and_oneself_does_not(database: Path) -> None:
    async with Rings(database) as one, Rings(database) as two, Rings(database) as three:
        for each in (one, two, three):
            assert each.bell.listen(asyncio.get_running_loop())
        await one.ring(work=True)
        assert await two.heard.get()
        assert await three.heard.get()
        await two.ring(work=False)
        assert not await one.heard.get()
        assert not await three.heard.get()
        assert two.heard.empty()
    assert not Path(f"{database}.wake").exists()


async def test_what_came_before_one_listens_is_heard(database: Path) -> None:
    async with Rings(database) as one, Rings(database) as two:
        for _ in range(1000):  # more than the kernel keeps
            await one.ring(work=True)
        two.bell.listen(asyncio.get_running_loop())
        assert await two.heard.get()


async def test_what_killed_processes_left_behind_is_removed(database: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from jobstore.engines.sqlite_doorbell import Doorbell

        bell = Doorbell(Path(sys.argv[1]), print)
        assert bell.open()
        print("open", flush=True)
        sys.stdin.read()
    """
    process = spawn(program, database)
    assert process.stdout is not None
    assert await asyncio.to_thread(process.stdout.readline) == "open\n"
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(process.communicate)
    assert len(sockets(database)) == 1
    async with Rings(database) as one:
        await one.ring(work=True)
        assert [path.name.partition(".")[0] for path in sockets(database)] == [str(os.getpid())]


async def test_a_long_path_is_no_hindrance(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only where open folders have names of their own")
    folder = tmp_path / ("long " * 40)
    folder.mkdir()
    async with Rings(folder / "jobs.db") as one, Rings(folder / "jobs.db") as two:
        two.bell.listen(asyncio.get_running_loop())
        await one.ring(work=True)
        assert await two.heard.get()


async def test_stores_hear_each_other_without_looking(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "POLL_RUNG", 3600)
    async with JobStore(database, migrate=True) as one, JobStore(database) as two:
        token = await two.jobs.wake()
        waiting = asyncio.ensure_future(two.jobs.wake(since=token))
        await asyncio.sleep(0)
        job = await one.jobs.enqueue("p", task_type="task", api_type="api")
        await waiting
        [claim] = await two.jobs.claim("worker")
        following = asyncio.ensure_future(one.jobs.wait(job.id))
        await two.jobs.complete(claim, "done")
        assert (await following).response == "done"
    assert not Path(f"{database}.wake").exists()


async def test_without_sockets_stores_look_for_themselves(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    async with JobStore(database, migrate=True) as one, JobStore(database) as two:
        token = await two.jobs.wake()
        waiting = asyncio.ensure_future(two.jobs.wake(since=token))
        await one.jobs.enqueue("p", task_type="task", api_type="api")
        await waiting
    assert not Path(f"{database}.wake").exists()


async def test_stores_that_open_and_close_at_the_same_time_all_have_a_bell(database: Path) -> None:
    async def open_and_close() -> None:
        for _ in range(50):
            async with Rings(database):
                pass

    await asyncio.gather(*(open_and_close() for _ in range(4)))
    assert not Path(f"{database}.wake").exists()
