"""`jobstore work` on a database that does not answer: while it starts, and when it is told to stop."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from jobstore import JobStore
from tests.conformance.support import eventually
from tests.engines.postgres_proxy import Proxy
from tests.processes.test_supervisor import enqueue, folder, live, working

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no signals")

IMPATIENT = """
from jobstore.cli import main, worker_process
from jobstore.repositories import workers
worker_process.CLOSE_SECONDS = workers.PATIENCE = 0.1
main()
"""


@pytest.fixture
async def proxy(fresh_database: str) -> AsyncIterator[Proxy]:
    async with Proxy(fresh_database).listening() as proxy:
        yield proxy


async def test_a_worker_waits_for_a_server_that_is_just_starting(
    fresh_database: str, proxy: Proxy, folder: Path
) -> None:
    async with JobStore(fresh_database, migrate=True) as store:
        [job] = await enqueue(store, "quick")
        proxy.refuses = True
        async with working(folder, proxy.url) as running:
            await eventually(lambda: "trying again for 30 s: no database at postgresql://" in running.log)
            proxy.refuses = False
            assert (await store.jobs.wait(job.id, 60)).response == "first code"
            running.process.terminate()
            assert await running.ends() == 0


@pytest.mark.parametrize("options", [[], ["--processes", "1"]], ids=["alone", "supervised"])
async def test_a_worker_that_waits_for_a_server_stops_at_once(proxy: Proxy, folder: Path, options: list[str]) -> None:
    proxy.refuses = True
    async with working(folder, proxy.url, *options) as running:
        await eventually(lambda: running.log.count("trying again") == 1)
        running.process.terminate()
        assert await running.ends() == 0
    assert "exit code 1" not in running.log  # it has not given up


async def test_a_process_does_not_wait_for_a_lock_that_a_stranger_keeps(tmp_path: Path, folder: Path) -> None:
    database = tmp_path / "jobs.db"
    impatient = ("-c", IMPATIENT)
    async with JobStore(database, migrate=True) as store, working(folder, database, python=impatient) as running:
        await live(store, 1)
        with closing(sqlite3.connect(database, isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            running.process.terminate()
            assert await running.ends() == 0
            assert "its last writes are not answered: the process ends without them" in running.log
