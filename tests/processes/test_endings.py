"""Forks, second event loops, forgotten closes and sudden exits: each ends clearly and soon, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from jobstore import JobStore, StoreClosed

from .support import run

ENQUEUE = 'await store.jobs.enqueue("p", task_type="task", api_type="api")'


def test_a_forked_child_is_refused_and_can_open_its_own(database: Path) -> None:
    code, output, errors = run(
        f"""
        import asyncio, os, sys
        from jobstore import JobStore, StoreClosed

        async def child(store):
            try:
                {ENQUEUE}
            except StoreClosed as error:
                print("refused:", error)
            async with JobStore(sys.argv[1]) as store:
                {ENQUEUE}

        async def main():
            async with JobStore(sys.argv[1], migrate=True) as store:
                {ENQUEUE}
                pid = os.fork()
                if pid == 0:
                    asyncio.events._set_running_loop(None)
                    asyncio.set_event_loop(None)
                    asyncio.run(child(store))
                    sys.stdout.flush()
                    os._exit(0)
                await asyncio.to_thread(os.waitpid, pid, 0)
                {ENQUEUE}
                print("jobs:", await store.jobs.count())

        asyncio.run(main())
        """,
        database,
    )
    assert code == 0, errors
    assert "refused: this store was opened before a fork" in output
    assert "jobs: 3" in output


def test_a_second_event_loop_is_refused(database: Path) -> None:
    async def opened() -> JobStore:
        return await JobStore(database, migrate=True).open()

    async def use(store: JobStore) -> None:
        with pytest.raises(StoreClosed, match="another event loop"):
            await store.jobs.count()
        with pytest.raises(StoreClosed, match="another event loop"):
            await store.close()

    first = asyncio.new_event_loop()
    store = first.run_until_complete(opened())
    asyncio.run(use(store))
    first.run_until_complete(store.close())
    first.close()


async def test_a_store_used_after_its_close_is_refused_and_can_be_opened_again(store: JobStore) -> None:
    jobs = store.jobs
    await store.close()
    with pytest.raises(StoreClosed):
        await store.jobs.count()
    with pytest.raises(StoreClosed):
        await jobs.count()
    await store.close()
    await store.open()
    assert await store.jobs.count() == 0


async def test_a_forgotten_store_warns_and_ends_its_threads(database: Path) -> None:
    before = set(threading.enumerate())
    store = await JobStore(database, migrate=True).open()
    await store.jobs.count()
    threads = [thread for thread in set(threading.enumerate()) - before if "connection_worker" in thread.name]
    assert threads
    with pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031 - the collection warns
        del store
        gc.collect()
    for thread in threads:
        await asyncio.to_thread(thread.join)


@pytest.mark.parametrize("keep", ["store = ", "global store; store = "])
def test_an_interpreter_with_a_forgotten_store_ends_with_a_warning(database: Path, keep: str) -> None:
    code, output, errors = run(
        f"""
        import asyncio, sys
        from jobstore import JobStore

        async def main():
            {keep}await JobStore(sys.argv[1], migrate=True).open()
            {ENQUEUE}
            print("acknowledged")

        asyncio.run(main())
        """,
        database,
    )
    assert code == 0, errors
    assert "acknowledged" in output
    assert "was not closed" in errors
    assert "Traceback" not in errors
    assert asyncio.run(counted(database)) == 1


async def counted(database: Path) -> int:
    async with JobStore(database) as store:
        return await store.jobs.count()


@pytest.mark.parametrize("ending", ["sys.exit(3)", "os._exit(3)", "raise SystemExit(3)"])
def test_an_exit_in_mid_batch_ends_soon_and_keeps_what_was_acknowledged(database: Path, ending: str) -> None:
    code, output, errors = run(
        f"""
        import asyncio, os, sys
        from jobstore import JobStore

        async def main():
            store = await JobStore(sys.argv[1], migrate=True).open()
            acknowledged = 0

            async def enqueue():
                nonlocal acknowledged
                {ENQUEUE}
                acknowledged += 1

            tasks = [asyncio.ensure_future(enqueue()) for _ in range(1000)]
            while acknowledged < 100:
                await asyncio.sleep(0)
            print("acknowledged", acknowledged, flush=True)
            {ending}

        asyncio.run(main())
        """,
        database,
    )
    assert code == 3, errors
    acknowledged = int(output.split()[1])
    assert asyncio.run(counted(database)) >= acknowledged


def test_an_event_loop_that_is_left_in_mid_batch_does_not_hang(database: Path) -> None:
    code, _, errors = run(
        f"""
        import asyncio, sys
        from jobstore import JobStore

        async def main():
            store = await JobStore(sys.argv[1], migrate=True).open()
            for _ in range(100):
                asyncio.ensure_future({ENQUEUE.removeprefix("await ")})
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        asyncio.run(main())
        print("over")
        """,
        database,
    )
    assert code == 0, errors
    assert "Traceback" not in errors


def test_a_daemon_of_leases_does_not_hold_up_the_exit(database: Path) -> None:
    code, _, errors = run(
        f"""
        import asyncio, sys
        from jobstore import JobStore

        async def main():
            store = await JobStore(sys.argv[1], migrate=True).open()
            {ENQUEUE}
            [claim] = await store.jobs.claim("w")
            kept = store.jobs.lease_kept(claim, lease=0.1)
            kept.__enter__()
            await asyncio.sleep(0.1)

        asyncio.run(main())
        """,
        database,
    )
    assert code == 0, errors
    assert "Traceback" not in errors


def test_importing_the_package_loads_no_optional_part() -> None:
    code, output, errors = run(
        """
        import sys
        import jobstore
        loaded = [name for name in ("jobstore.workers", "jobstore.providers", "jobstore.cli", "jobstore.testing",
                                    "anthropic", "typer", "rich", "starlette", "uvicorn") if name in sys.modules]
        print(loaded)
        """
    )
    assert code == 0, errors
    assert output.strip() == "[]"
