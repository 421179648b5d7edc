"""Several processes on one PostgreSQL database: one is killed, one forgets to close, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from jobstore import JobStore, NewJob
from tests import postgres

from .support import finish, run, spawn

WORKER = """
    import asyncio, sys
    from jobstore import JobStore, LeaseLost

    async def complete(store, claim):
        try:
            await store.jobs.complete(claim, "done")
        except LeaseLost:  # this machine was slow, and another has the job
            return
        sys.stdout.write(claim.job_id + "\\n")

    async def main(url, holds_after):
        completed = 0
        async with JobStore(url) as store:
            token = await store.jobs.wake()
            while await store.jobs.count(status="completed") < await store.jobs.count():
                while claims := await store.jobs.claim("worker", limit=10, lease=2.0):
                    if holds_after and completed >= holds_after:
                        print("holding", len(claims), flush=True)
                        await asyncio.Event().wait()
                    await asyncio.gather(*(complete(store, claim) for claim in claims))
                    completed += len(claims)
                token = await store.jobs.wake(since=token)

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
def url(postgres_database: str) -> str:
    postgres.empty(postgres_database)
    return postgres_database


async def fill(url: str, jobs: int) -> None:
    async with JobStore(url, migrate=True) as store:
        await store.jobs.enqueue_many(NewJob(prompt="p", task_type="task", api_type="api") for _ in range(jobs))


def wait_until_it_holds(process: subprocess.Popen[str]) -> tuple[list[str], int]:
    """Wait for a worker that holds jobs without doing them; return what it completed before, and how many it holds."""
    assert process.stdout is not None
    completed = []
    for line in process.stdout:
        word, _, count = line.strip().partition(" ")
        if word == "holding":
            return completed, int(count)
        completed.append(word)
    raise AssertionError(f"it ended too soon: {process.communicate()}")


@pytest.mark.parametrize("jobs", [2000, pytest.param(10_000, marks=pytest.mark.full)])
def test_the_jobs_of_a_killed_worker_are_rescued_and_none_is_completed_twice(url: str, jobs: int) -> None:
    asyncio.run(fill(url, jobs))
    victim = spawn(WORKER, url, 50)
    others: list[subprocess.Popen[str]] = []
    try:
        completed, held = wait_until_it_holds(victim)  # before the others could leave it nothing
        assert held > 0
        others += [spawn(WORKER, url, 0) for _ in range(3)]
        os.kill(victim.pid, signal.SIGKILL)
        with ThreadPoolExecutor() as threads:  # read together, or one would wait for its pipe to be read
            for code, output, errors in threads.map(finish, others):
                assert code == 0, errors
                completed += output.split()
    finally:
        for process in (victim, *others):
            with process:
                process.kill()
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id, status FROM background_jobs").fetchall()
        rescued = connection.execute("SELECT count(*) FROM job_attempts WHERE outcome = 'lost'").fetchone()
        won = connection.execute(
            "SELECT count(*), count(DISTINCT job_id) FROM job_attempts WHERE outcome = 'completed'"
        ).fetchone()
    assert {status for _, status in rows} == {"completed"}
    assert Counter(completed) == Counter(job_id for job_id, _ in rows)
    assert rescued is not None
    assert rescued[0] >= held
    assert won == (jobs, jobs)


def test_an_interpreter_with_a_forgotten_store_ends_with_a_warning_and_leaves_no_transaction(url: str) -> None:
    asyncio.run(fill(url, 1))
    code, output, errors = run(
        """
        import asyncio, sys
        from jobstore import JobStore

        async def main():
            store = await JobStore(sys.argv[1]).open()
            await store.jobs.enqueue("p", task_type="task", api_type="api")
            print("acknowledged")

        asyncio.run(main())
        """,
        url,
    )
    assert code == 0, errors
    assert "acknowledged" in output
    assert "was not closed" in errors
    assert "Traceback" not in errors
    assert left_behind(url) == (2, 0)


@pytest.mark.parametrize("ending", ["sys.exit(3)", "os._exit(3)"])
def test_an_exit_in_mid_batch_keeps_what_was_acknowledged(url: str, ending: str) -> None:
    asyncio.run(fill(url, 0))
    code, output, errors = run(
        f"""
        import asyncio, os, sys
        from jobstore import JobStore

        async def main():
            store = await JobStore(sys.argv[1]).open()
            acknowledged = 0

            async def enqueue():
                nonlocal acknowledged
                await store.jobs.enqueue("p", task_type="task", api_type="api")
                acknowledged += 1

            tasks = [asyncio.ensure_future(enqueue()) for _ in range(2000)]
            while acknowledged < 100:
                await asyncio.sleep(0)
            print("acknowledged", acknowledged, flush=True)
            {ending}

        asyncio.run(main())
        """,
        url,
    )
    assert code == 3, errors
    jobs, transactions = left_behind(url)
    assert jobs >= int(output.split()[1])
    assert transactions == 0


def left_behind(url: str) -> tuple[int, int]:
    """Return how many jobs there are, and how many transactions, once the server has noticed that a process is gone."""
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute(
                "SELECT (SELECT count(*) FROM background_jobs),"
                " count(*) FILTER (WHERE xact_start IS NOT NULL), count(*)"
                " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'jobstore'"
            ).fetchone()
            assert row is not None
            if row[2] == 0:
                return row[0], row[1]
